"""What our processes do otherwise than Celery and kombu, because it costs less."""
