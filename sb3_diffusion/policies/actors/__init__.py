"""What draws actions, and what becomes of several of them: how they are chosen, and how noise is added."""
