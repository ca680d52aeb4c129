"""Training mode of networks of which parts are frozen."""

from torch import nn


def train_unless_frozen(module: nn.Module) -> None:
    """
    ``module.train()`` for what is trained. What is frozen, every parameter of it by ``requires_grad_(False)``, gets into
    evaluation mode: training mode would go on moving the running statistics of its normalisations.

    :param module: A network
    """
    trained = {parameter.requires_grad for parameter in module.parameters()}
    if len(trained) < 2 or type(module).train is not nn.Module.train:  # or somebody's own rule
        module.train(trained != {False})
        return
    module.training = True
    for child in module.children():
        train_unless_frozen(child)
