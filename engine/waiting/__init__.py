"""Requests that wait at the door: which goes next, which must run alone, and when each must have ended. No torch."""
