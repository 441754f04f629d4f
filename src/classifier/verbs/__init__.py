"""What the entry points do: each verb is one function from a config to its result."""
