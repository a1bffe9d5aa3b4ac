"""The law of mixers as a function: `check_mixer("gla(heads=2)")` checks a mixer, also one from your own project.

    from seqzoo.testing import check_mixer

    def test_my_mixer_keeps_the_law():
        check_mixer("my_mixer(heads=2)")  # or MyMixer, or MyMixer.Settings(heads=2)

A mixer is run in two forms, each compiled once: whole, in float32, and one token after the other, in float64, which is the
definition. Both give outputs, final state and all gradients. Rows of every check have the same shape, so that pieces, documents and
states all go through these two. A check that fails raises AssertionError with the mixer, the seed, the shape and the errors.
"""

from seqzoo.mixers.base import Mixer
from seqzoo.specs import Settings, Spec
from seqzoo.testing.checks import CHECKS
from seqzoo.testing.comparison import RELATIVE, assert_close, error, rms
from seqzoo.testing.flops import matmul_flops
from seqzoo.testing.mixer_under_test import MixerUnderTest

__all__ = ["CHECKS", "RELATIVE", "MixerUnderTest", "assert_close", "check_mixer", "error", "matmul_flops", "rms"]


def check_mixer(mixer: str | Spec | Settings | type[Mixer], *, d_model: int = 32, seed: int = 0) -> None:
    """Checks a mixer against the law.

    Args:
      mixer: a spec string, typed settings, or a class with its default settings, registered or not.
      d_model: width of the rows.
      seed: of parameters and inputs.
    Raises:
      AssertionError: a check that fails, with the mixer, the seed, the shape and the errors.
      SpecError: there is no such mixer or setting.
    Cost: three compilations of the mixer, one of them without gradients, and some 40 runs of two rows of 44 tokens: a few seconds.
    """
    it = MixerUnderTest(mixer, d_model, seed)
    for check in CHECKS:
        check(it)
