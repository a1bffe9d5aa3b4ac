"""Interchangeable sequence mixers for JAX: kernels, layers, one backbone, one trainer.

Nothing is imported here: whoever takes one layer from `seqzoo.mixers` never pays for the trainer's libraries.
"""

__version__ = "0.1.0"


def load(run):
    """The trained model of a run folder: its latest checkpoint that loads, as a `seqzoo.backbone.LanguageModel`.

    Args:
      run: path of a folder that training wrote.
    Raises:
      FileNotFoundError: no run, or no checkpoint in it. CheckpointError: none of its checkpoints loads.
    """
    from seqzoo.training import load_model

    return load_model(run)
