"""Q-value guidance: the critic's action gradient is the regression target of the noise network."""
