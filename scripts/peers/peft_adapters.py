"""Prompts to and from the real PEFT library.

Usage: peft_adapters.py write | kinds | check [--promptmix target/debug/promptmix]   (needs torch, transformers, peft, safetensors)

write: makes tests/fixtures/peft with PEFT itself: the adapter of a prompt as PEFT saves it by default (two submodules, as
safetensors and as .bin) and the logits of the tiny T5 with it, which the tests compare with ours.
kinds: makes tests/fixtures/peft/kinds: adapters of PEFT's other kinds of soft prompt and one of another name than `default`, as
save_pretrained lays them out, and PEFT's logits with each after loading it again.
check: lets promptmix import that adapter and export it again, loads what it wrote with PEFT, and compares the logits with
those of the golden file.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import torch
import peft
import transformers
from peft import (
    MultitaskPromptTuningConfig,
    PeftModel,
    PromptEncoderConfig,
    PromptTuningConfig,
    TaskType,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5ForConditionalGeneration

ROOT = pathlib.Path(__file__).parents[2]
MODEL = ROOT / "tests" / "fixtures" / "tiny"
FOLDER = ROOT / "tests" / "fixtures" / "peft"
LENGTH = 6


def tiny():
    model = T5ForConditionalGeneration(T5Config.from_json_file(MODEL / "config.json"))
    missing, unexpected = model.load_state_dict(load_file(MODEL / "model.safetensors"), strict=False)
    tied = {"lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
    assert set(missing) <= tied and not unexpected, (missing, unexpected)
    model.tie_weights()
    return model.eval()


def inputs():
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(2, 512, (3, 11), generator=generator)
    labels = torch.randint(2, 512, (3, 4), generator=generator)
    return ids, labels


def logits(model, ids, labels):
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).logits


def write():
    shutil.rmtree(FOLDER, ignore_errors=True)
    torch.manual_seed(4)
    config = PromptTuningConfig(task_type=TaskType.SEQ_2_SEQ_LM, num_virtual_tokens=LENGTH)
    model = get_peft_model(tiny(), config).eval()
    ids, labels = inputs()
    for name, safe in (("saved", True), ("saved_bin", False)):
        if safe:
            model.save_pretrained(FOLDER / name)
    weights = load_file(FOLDER / "saved" / "adapter_model.safetensors")
    (FOLDER / "saved_bin").mkdir()
    # As PEFT wrote it before safetensors.
    torch.save(weights, FOLDER / "saved_bin" / "adapter_model.bin")
    shutil.copy(FOLDER / "saved" / "adapter_config.json", FOLDER / "saved_bin")
    (FOLDER / "saved" / "README.md").unlink(missing_ok=True)
    tensors = {"ids": ids.float(), "labels": labels.float(), "logits": logits(model, ids, labels).contiguous()}
    save_file(tensors, FOLDER / "golden.safetensors")


def kinds():
    folder = FOLDER / "kinds"
    shutil.rmtree(folder, ignore_errors=True)
    common = {"task_type": TaskType.SEQ_2_SEQ_LM, "num_virtual_tokens": LENGTH}
    multitask = {"num_tasks": 2, "num_ranks": 2, **common}
    made = [
        ("p_tuning", "default", PromptEncoderConfig(encoder_hidden_size=16, **common)),
        ("multitask", "default", MultitaskPromptTuningConfig(num_transformer_submodules=1, **multitask)),
        ("multitask_generate", "default", MultitaskPromptTuningConfig(**multitask)),
        ("named", "reviews", PromptTuningConfig(**common)),
    ]
    ids, labels = inputs()
    mask = torch.ones_like(ids)
    golden = {"ids": ids.float(), "labels": labels.float()}
    for seed, (name, adapter, config) in enumerate(made):
        torch.manual_seed(seed)
        model = get_peft_model(tiny(), config, adapter_name=adapter).eval()
        for key, value in model.named_parameters():
            if "prefix_task" in key:  # trained from near 0: large enough here to be told from anything else
                value.data.normal_(1.0, 0.5)
        model.save_pretrained(folder / name)
        for readme in folder.glob("**/README.md"):
            readme.unlink()
        where = folder / name if adapter == "default" else folder / name / adapter
        loaded = PeftModel.from_pretrained(tiny(), where).eval()
        for task in range(2 if "multitask" in name else 1):
            extra = {"task_ids": torch.full((len(ids),), task)} if "multitask" in name else {}
            with torch.no_grad():
                if name == "multitask_generate":
                    # With two submodules PEFT's loss puts the other rows before the decoder, and its generate() does not.
                    made = loaded.generate(
                        input_ids=ids, attention_mask=mask, max_new_tokens=4, min_new_tokens=4, do_sample=False,
                        return_dict_in_generate=True, output_logits=True, **extra,
                    )
                    golden[f"{name}_{task}"] = torch.stack(made.logits, dim=1)
                    golden[f"{name}_{task}_labels"] = made.sequences[:, 1:].float()
                else:
                    found = loaded(input_ids=ids, attention_mask=mask, labels=labels, **extra).logits
                    golden[f"{name}_{task}"] = found.contiguous()
    metadata = {"peft": peft.__version__, "transformers": transformers.__version__, "torch": torch.__version__}
    save_file(golden, folder / "golden.safetensors", metadata=metadata)
    print(json.dumps(metadata))


def check(promptmix):
    golden = load_file(FOLDER / "golden.safetensors")
    with tempfile.TemporaryDirectory() as folder:
        prompt, adapter = f"{folder}/prompt.safetensors", f"{folder}/adapter"
        subprocess.run([promptmix, "prompts", "import", FOLDER / "saved", "--model", MODEL, "--out", prompt], check=True)
        subprocess.run([promptmix, "prompts", "export", prompt, "--model", MODEL, "--out", adapter], check=True)
        model = PeftModel.from_pretrained(tiny(), adapter).eval()
    difference = (logits(model, *inputs()) - golden["logits"]).abs().max().item()
    scale = golden["logits"].abs().max().item()
    print(f"largest difference {difference:.2e} of logits up to {scale:.2f}")
    if not difference <= 1e-4:
        sys.exit("promptmix's adapter gives other logits in PEFT")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["write", "kinds", "check"])
    parser.add_argument("--promptmix", default=ROOT / "target" / "debug" / "promptmix")
    arguments = parser.parse_args()
    {"write": write, "kinds": kinds, "check": lambda: check(arguments.promptmix)}[arguments.what]()
