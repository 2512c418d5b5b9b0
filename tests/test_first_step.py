"""What a run does before its first step, and what it leaves until after it."""

import json
from pathlib import Path

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

import protege

RUN = {"student": "zoo:mlp", "data": "digits", "method": "kd", "samples": 60, "epochs": 1, "batch_size": 30}


def test_the_teacher_is_scored_after_the_run_and_remembered(digits_teacher, tmp_path, monkeypatch):
    monkeypatch.setenv("PROTEGE_CACHE", str(tmp_path / "cache"))
    asked = {"before": 0, "after": 0}
    part = "before"

    def count(module, inputs):
        asked[part] += len(inputs[0])

    def step(*_):
        nonlocal part
        part = "after"

    for name, after in (("first", 360), ("second", 0)):  # digits have 360 test images
        teacher = protege.load_model(str(digits_teacher))
        asked, part = {"before": 0, "after": 0}, "before"
        hooks = [teacher.network.register_forward_pre_hook(count), register_optimizer_step_post_hook(step)]
        result = protege.distill(teacher, out=tmp_path / name, cache_budget="0B", **RUN)
        for hook in hooks:
            hook.remove()
        start = json.loads((Path(tmp_path) / name / "metrics.jsonl").read_text().splitlines()[0])
        assert result.result["teacher"]["metrics"] == protege.evaluate(str(digits_teacher), "digits")
        assert bool(start["teacher"]["metrics"]) == (name == "second"), (
            "a report of an unfinished run has what is known"
        )
        assert asked["after"] - after < 200, "the samples of the run alone"
        assert asked["after"] >= after
    assert torch.is_grad_enabled()
