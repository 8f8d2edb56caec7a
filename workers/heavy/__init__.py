"""Jobs that are no inference: claimed under a lease, run beside a keeper that renews it, ended within seconds."""
