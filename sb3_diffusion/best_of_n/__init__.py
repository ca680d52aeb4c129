"""Best of N: the data is imitated, and the critics choose among the imitated actions."""
