"""What the command starts on this machine: embedded servers, `millrace up`, and the parts of a production system."""
