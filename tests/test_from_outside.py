"""Checkpoints of plain PyTorch, Lightning and Hugging Face are read as they are written there."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import sharpness as sh
from sharpness.errors import InputError
from sharpness.problem import solution

X, Y = torch.randn(30, 4), torch.arange(30) % 3
DATA = ((X, Y), (X, Y))


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))


def trained() -> nn.Module:
    torch.manual_seed(3)
    model = network()
    model(X)  # running statistics of its own
    return model


def ends_at(path: Path, model: nn.Module, **options: Any) -> bool:
    options = {"model": network, "data": DATA, **options}
    run = sh.read(path, loss="cross_entropy", **options)
    wanted = solution(model)
    return torch.equal(run.end.theta, wanted.theta) and all(
        torch.equal(run.end.buffers[name], b) for name, b in wanted.buffers.items()
    )


def lightning(weights: dict[str, Tensor]) -> dict[str, Any]:
    """What ``Trainer.save_checkpoint`` writes: all keys that it has, with tensors among them."""
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    best = torch.tensor(0.31)
    return {
        "epoch": 2,
        "global_step": 30,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": OrderedDict(weights),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 3}}}},
        "callbacks": {
            "ModelCheckpoint{'monitor': 'val_loss', 'mode': 'min'}": {
                "monitor": "val_loss",
                "best_model_score": best,
                "best_k_models": {"a.ckpt": best},
            }
        },
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 1e-3, "width": 5},
    }


def test_a_plain_checkpoint_with_an_optimizer_beside_it_is_read(tmp_path: Path) -> None:
    model = trained()
    steps = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9).state_dict()
    content = {"epoch": 3, "model_state_dict": model.state_dict(), "optimizer_state_dict": steps}
    torch.save(content, tmp_path / "a.pt")
    assert ends_at(tmp_path / "a.pt", model)


@pytest.mark.parametrize("prefix", ["model.", "net.", "module.", "_orig_mod.", "model._orig_mod."])
def test_a_prefix_of_lightning_or_of_a_compiled_model_is_no_part_of_a_name(
    prefix: str, tmp_path: Path
) -> None:
    model = trained()
    content = lightning({prefix + name: x for name, x in model.state_dict().items()})
    torch.save(content, tmp_path / "a.ckpt")
    assert ends_at(tmp_path / "a.ckpt", model)


def test_tensors_of_a_loss_beside_the_network_are_left(tmp_path: Path) -> None:
    model = trained()
    weights = {f"model.{name}": x for name, x in model.state_dict().items()}
    torch.save(lightning(weights | {"loss.weight": torch.ones(3)}), tmp_path / "a.ckpt")
    assert ends_at(tmp_path / "a.ckpt", model)


def test_two_networks_in_one_checkpoint_are_refused(tmp_path: Path) -> None:
    """As of a teacher and a student, or of weights and their average."""
    weights = {f"model.{name}": x for name, x in trained().state_dict().items()}
    other = {f"ema.{name}": x for name, x in network().state_dict().items()}
    torch.save(lightning(weights | other), tmp_path / "a.ckpt")
    with pytest.raises(InputError, match="needs the tensors of the model"):
        ends_at(tmp_path / "a.ckpt", trained())


class Output(OrderedDict[str, Tensor]):
    """A dict whose entries are attributes too, as the outputs of transformers are."""

    def __getattr__(self, name: str) -> Tensor:
        return self[name]


class Classifier(nn.Module):
    """As transformers has them: tokens and a mask by keyword, tied weights, an Output."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(7, 4)
        self.classifier = nn.Linear(4, 7, bias=False)
        self.classifier.weight = self.embeddings.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Output:
        mask = attention_mask.unsqueeze(-1).to(self.embeddings.weight)
        pooled = (self.embeddings(input_ids) * mask).sum(dim=1) / mask.sum(dim=1)
        return Output(logits=self.classifier(pooled))


def build() -> nn.Module:
    model = Classifier()
    model.register_forward_hook(lambda module, args, output: output.logits)
    return model


def tokens() -> Any:
    ids = torch.randint(7, (20, 5))
    part = ({"input_ids": ids, "attention_mask": (ids > 0).long() | 1}, ids[:, 0])
    return part, part


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_checkpoint_of_hugging_face_with_tied_weights_is_read(file: str, tmp_path: Path) -> None:
    model = build()
    weights = model.state_dict()
    if file.endswith("bin"):
        torch.save(weights, tmp_path / file)
    else:  # which keeps a shared tensor once
        del weights["classifier.weight"]
        save_file(weights, tmp_path / file, metadata={"format": "pt"})
    run = sh.read(tmp_path / file, model=build, data=tokens(), loss="cross_entropy")
    assert torch.equal(run.end.theta, model.get_parameter("embeddings.weight").detach().flatten())
    data = tokens()
    run = sh.read(tmp_path / file, model=build, data=data, loss="cross_entropy")
    f = sh.objective_of(run, model=build, data=data, loss="cross_entropy")
    pairs = sh.eigsh(sh.Hessian(f), 1)
    assert pairs.converged.all()


def test_outputs_of_transformers_are_refused_with_the_remedy(tmp_path: Path) -> None:
    torch.save(Classifier().state_dict(), tmp_path / "a.bin")
    with pytest.raises(InputError, match="got a Output: return its logits, by a forward hook"):
        sh.read(tmp_path / "a.bin", model=Classifier, data=tokens(), loss="cross_entropy")


def test_what_is_missing_and_not_tied_stays_missing(tmp_path: Path) -> None:
    weights = trained().state_dict()
    del weights["3.bias"]
    torch.save(weights, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"3\.bias is missing"):
        ends_at(tmp_path / "a.pt", trained())
