"""What towers of many families have in common; exported by `axcore`."""
