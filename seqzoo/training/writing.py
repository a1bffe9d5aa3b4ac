"""`seqzoo.writing`, under the name that the trainer's files know it by."""

from seqzoo.writing import WriteError, reason, remove_halves, write_json, write_text, writing

__all__ = ["WriteError", "reason", "remove_halves", "write_json", "write_text", "writing"]
