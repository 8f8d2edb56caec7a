"""Small C kernels for the CPU: compiled by the machine's own compiler at first use, kept in the user's cache."""
