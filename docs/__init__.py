"""The program that writes docs/reference; everything else here is for people to read."""
