"""The OpenAPI document: what stands in it beside what the routes say themselves, and how it is shown."""
