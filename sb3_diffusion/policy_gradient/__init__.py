"""Policy gradients: the likelihood of the actions of the last rollout is raised or lowered by their advantages."""
