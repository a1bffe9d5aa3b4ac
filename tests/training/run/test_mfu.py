"""Utilisation: model FLOPs over time and peak, and no number where the peak is not known."""

import jax
import pytest

from seqzoo.tasks.base import BatchSpec
from seqzoo.training.run.mfu import PEAKS, TRAINING, in_words, mfu, peak, training_flops


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100"),
        ("NVIDIA H100 PCIe", "NVIDIA H100 PCIe"),
        ("NVIDIA H100 NVL", "NVIDIA H100 NVL"),
        ("NVIDIA H200", "NVIDIA H200"),
        ("NVIDIA GH200 480GB", "NVIDIA GH200"),
        ("NVIDIA A100-SXM4-40GB", "NVIDIA A100"),
        ("NVIDIA A100 80GB PCIe", "NVIDIA A100"),
        ("NVIDIA L4", "NVIDIA L4"),
        ("NVIDIA L40S", "NVIDIA L40S"),
        ("TPU v4", "TPU v4"),
        ("TPU v5 lite", "TPU v5 lite"),
        ("TPU v5", "TPU v5"),
        ("TPU v6 lite", "TPU v6 lite"),
    ],
)
def test_a_device_has_the_peak_of_its_own_name(kind, name):
    assert peak(kind, "bfloat16") == peak(kind, "float16") == PEAKS[name].half
    assert peak(kind, "float32") == PEAKS[name].single


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA L40", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA Z9", "TPU v99", ""])
def test_a_device_that_is_not_in_the_table_has_no_peak(kind):
    assert peak(kind, "bfloat16") is None and mfu(1e12, 1, kind, "bfloat16") is None


def test_a_dtype_without_a_matrix_unit_has_no_peak():
    assert peak("NVIDIA H100 80GB HBM3", "int8") is None


def test_no_device_is_faster_in_float32_than_in_bfloat16():
    assert all(0 < peak.single <= peak.half for peak in PEAKS.values())


def test_utilisation_is_one_where_every_device_works_at_its_peak():
    device = "NVIDIA H100 80GB HBM3"
    assert mfu(8 * PEAKS["NVIDIA H100"].half, 8, device, "bfloat16") == 1.0
    assert mfu(PEAKS["NVIDIA H100"].single, 2, device, "float32") == 0.5
    assert mfu(None, 8, device, "bfloat16") is None
    assert mfu(1e9, 1, jax.devices()[0].device_kind, "float32") is None


def test_a_training_step_counts_three_forward_passes_and_each_spec_once():
    asked = []

    def forward(batch, length):
        asked.append((batch, length))
        return batch * length**2

    flops = training_flops(forward)
    specs = [BatchSpec("train", 0, 2, 8), BatchSpec("train", 1, 4, 16), BatchSpec("train", 0, 2, 8)]
    assert [flops(spec) for spec in specs] == [TRAINING * 128, TRAINING * 1024, TRAINING * 128]
    assert asked == [(2, 8), (4, 16)]


def test_utilisation_in_words():
    assert in_words(0.4134) == "41.3% MFU" and in_words(None) == "MFU n/a"
