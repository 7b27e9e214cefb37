"""Runs honest submissions under the import hook with real torch: `python -I rules_torch_runner.py GUARD_DIR DEVICE < cases.json`.

Reads `{"table": …, "cases": {name: source}}`, trains a tiny Qwen2 for two steps with each, twice, and writes name → error text
("" when all went well), the hook's violations included.
"""

import json
import sys
import tempfile
import traceback
from pathlib import Path

sys.path.insert(0, sys.argv[1])
import hook
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM


def train(module, device):
    config = Qwen2Config(vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    model = Qwen2ForCausalLM(config).to(device)
    for _ in range(2):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1)
        batches = iter([torch.randint(0, 128, (4, 33)) for _ in range(2)])
        result = module.inner_steps(model, batches, optimizer, 2, torch.device(device))
    assert tuple(result.final_logits.shape) == (4, 32, 128), result.final_logits.shape
    assert result.total_tokens == 2 * 4 * 33
    assert result.final_loss > 0


def main():
    order, results = json.load(sys.stdin), {}
    torch.set_num_threads(1)  # matrices this small only wait for each other's threads
    hook.install(order["table"])
    with tempfile.TemporaryDirectory() as folder:
        for name, source in order["cases"].items():
            path = Path(folder) / f"{name}.py"
            path.write_bytes(source.encode())
            try:
                train(hook.load(str(path)), sys.argv[2])
                results[name] = ""
            except BaseException:
                results[name] = traceback.format_exc()
            results[name] += "".join(str(violation) for violation in hook.violations)
            hook.violations.clear()
    json.dump(results, sys.stdout)


main()
