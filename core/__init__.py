"""What everything else is built from: settings, errors, states, the engine protocol, prompts. No I/O, no torch."""
