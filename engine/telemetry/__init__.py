"""What an engine knows of itself and of its device: sensors, the throttle that listens to them, figures for `Hello`. No
torch."""
