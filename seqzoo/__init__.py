"""Interchangeable sequence mixers for JAX: kernels, layers, one backbone, one trainer.

Nothing is imported here, so that importing one layer from `seqzoo.mixers` does not import the libraries of the trainer.
"""

__version__ = "0.1.0"


def load(run):
    """The trained model of a run folder: its latest checkpoint that loads, as a `seqzoo.model.LanguageModel`.

    Args:
      run: path of a folder that training wrote.
    Raises:
      FileNotFoundError: no run, or no checkpoint in it. CheckpointError: none of its checkpoints loads.
    """
    from seqzoo.training import load_model

    return load_model(run)


def generate(model, prompts, **settings):
    """Continues prompts (sequences of token ids) with a `LanguageModel`: greedily, or sampled with a key; in one compiled loop.

    `generate(model, [[1, 2, 3], [4]], max_new_tokens=20)` gives (tokens [b, n], lengths [b]). The settings are those of
    `seqzoo.generation.generate`, which explains each: max_new_tokens, key, temperature, top_k, top_p, stop, max_length,
    dtype, prefill_chunk, block, on_token.
    """
    from seqzoo.generation import generate

    return generate(model, prompts, **settings)
