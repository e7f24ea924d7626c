"""oneDNN's product of float32 matrices: checked at use, recorded, and put back."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sharpness as sh
from sharpness.gemm import MATMUL, in_force
from sharpness.training import cpu_threads

Ask = Callable[..., tuple[int, str, str]]
FLOAT32 = torch.zeros(1)


def refusal() -> str:
    """What keeps this machine from it, empty where nothing does."""
    try:
        with sh.fast_gemm():
            return ""
    except sh.InputError as error:
        return str(error)


REFUSAL = refusal()
needs_it = pytest.mark.skipif(bool(REFUSAL), reason=REFUSAL)


@needs_it
def test_a_training_can_be_told_to_take_it_and_says_so() -> None:
    config = sh.TrainConfig(batch_size=600, updates=3, threads=1)
    told = sh.train(replace(config, fast_gemm=True))
    with sh.fast_gemm():
        within = sh.train(config)
    assert torch.equal(told.end.theta, within.end.theta)
    assert not torch.equal(told.end.theta, sh.train(config).end.theta)
    assert told.spec["train"]["fast_gemm"]
    assert "fast_gemm" not in within.spec["train"]


def test_a_training_in_float64_cannot_take_it() -> None:
    with pytest.raises(sh.InputError, match="fast_gemm needs float32 on the CPU, got float64 on"):
        sh.train(sh.TrainConfig(updates=1, dtype="float64", fast_gemm=True))


@pytest.fixture(autouse=True)
def own_setting() -> Iterator[None]:
    """Each test starts from torch's default and leaves it behind."""
    assert (MATMUL.fp32_precision, torch.backends.fp32_precision) == ("none", "none")
    yield
    MATMUL.fp32_precision = torch.backends.fp32_precision = "none"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with cpu_threads(1):
        yield


@pytest.fixture
def ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that passes the check: where this one does not, only the check is left out."""
    if REFUSAL:
        monkeypatch.setattr("sharpness.gemm._require_float32", lambda products, default: None)


def objective(dtype: torch.dtype = torch.float32) -> sh.Objective:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 40), nn.Tanh(), nn.Linear(40, 5))
    batch = torch.randn(64, 30).to(dtype), torch.randint(5, (64,))
    return sh.Objective(model.to(dtype), [batch], nn.functional.cross_entropy)


# ---- the setting ---------------------------------------------------------------------------


@pytest.mark.usefixtures("ready")
@pytest.mark.parametrize("before", ["none", "ieee", "tf32", "bf16"])
def test_the_setting_is_as_before_after_the_context_and_after_an_error(before: str) -> None:
    MATMUL.fp32_precision = before
    with sh.fast_gemm():
        assert MATMUL.fp32_precision == "bf16"
    assert MATMUL.fp32_precision == before
    with pytest.raises(KeyboardInterrupt), sh.fast_gemm():
        raise KeyboardInterrupt
    assert MATMUL.fp32_precision == before
    assert in_force(FLOAT32) == {"tf32": "tf32", "bf16": "bf16"}.get(before)


@pytest.mark.usefixtures("ready")
def test_the_inner_of_two_contexts_leaves_the_outer_one_in_force() -> None:
    with sh.fast_gemm():
        with sh.fast_gemm():
            assert in_force(FLOAT32) == "oneDNN"
        with pytest.raises(ZeroDivisionError), sh.fast_gemm():
            raise ZeroDivisionError
        assert in_force(FLOAT32) == "oneDNN"
    assert in_force(FLOAT32) is None


@pytest.mark.usefixtures("ready")
def test_an_inherited_setting_is_inherited_afterwards() -> None:
    torch.backends.fp32_precision = "tf32"
    with sh.fast_gemm():
        pass
    assert MATMUL.fp32_precision == "tf32"
    torch.backends.fp32_precision = "none"
    assert MATMUL.fp32_precision == "none"


@pytest.mark.usefixtures("ready")
def test_the_global_random_state_stays() -> None:
    before = torch.random.get_rng_state()
    with sh.fast_gemm():
        assert torch.equal(torch.random.get_rng_state(), before)


# ---- the check -----------------------------------------------------------------------------


def rounding(f: Callable[..., Tensor], bits: int) -> Callable[..., Tensor]:
    """The product of operands that are rounded to so many bits in float32 where oneDNN is asked."""

    def rounded(*operands: Tensor) -> Tensor:
        if operands[0].dtype == torch.float32 and MATMUL.fp32_precision == "bf16":
            operands = tuple(_rounded(A, bits) for A in operands)
        return f(*operands)

    rounded.__name__ = f.__name__
    return rounded


def _rounded(A: Tensor, bits: int) -> Tensor:
    mantissa, exponent = torch.frexp(A)
    return torch.ldexp((mantissa * 2**bits).round() / 2**bits, exponent)


# bfloat16 has 8 bits, tf32 11; 16 are those of an operand taken as a sum of two bfloat16.
@pytest.mark.parametrize("name", ["mm", "addmm", "bmm", "mv"])
@pytest.mark.parametrize("bits", [8, 11, 16])
def test_a_product_of_lower_precision_is_refused_and_the_setting_put_back(
    name: str, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, name, rounding(getattr(torch, name), bits))
    with pytest.raises(sh.InputError, match=f"err by at most .* from {name} on this CPU"):
        sh.fast_gemm().__enter__()
    assert MATMUL.fp32_precision == "none"
    assert in_force(FLOAT32) is None


def test_rounding_to_8_bits_is_that_to_bfloat16() -> None:
    A = torch.randn(1000)
    assert torch.equal(_rounded(A, 8), A.bfloat16().float())


def test_a_product_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    mm = torch.mm
    monkeypatch.setattr(torch, "mm", lambda A, B: mm(A, B) * torch.nan)
    with pytest.raises(sh.InputError, match="got nan"):
        sh.fast_gemm().__enter__()


def test_sums_of_float32_in_the_worst_order_are_within_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def one_by_one(A: Tensor, B: Tensor) -> Tensor:
        if A.dtype != torch.float32 or MATMUL.fp32_precision != "bf16":
            return mm(A, B)
        C = torch.zeros(A.shape[0], B.shape[1])
        for i in range(A.shape[1]):
            C += A[:, i, None] * B[i]
        return C

    mm = torch.mm
    one_by_one.__name__ = "mm"
    monkeypatch.setattr(torch, "mm", one_by_one)
    with sh.fast_gemm():
        assert in_force(FLOAT32) == "oneDNN"


def test_a_machine_where_oneDNN_takes_no_products_gets_one_line() -> None:  # noqa: N802
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    try:
        with pytest.raises(sh.InputError, match="needs a CPU where oneDNN takes"):
            sh.fast_gemm().__enter__()
    finally:
        torch.backends.mkldnn.enabled = before
    assert MATMUL.fp32_precision == "none"


def test_a_cpu_without_avx_512_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sharpness as sh; sh.fast_gemm().__enter__()"],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "InputError: fast_gemm needs a CPU where oneDNN takes" in done.stderr


# ---- what is computed, and what it says of itself ------------------------------------------


@needs_it
def test_eigenvalues_are_those_of_torchs_own_product_within_float32_rounding() -> None:
    exact = sh.eigsh(sh.Hessian(objective(torch.float64)), 3, tol=1e-10).values
    with sh.fast_gemm():
        pairs = sh.eigsh(sh.Hessian(objective()), 3, tol=1e-6)
    default = sh.eigsh(sh.Hessian(objective()), 3, tol=1e-6)
    # The residual, and ten products of matrices in a row that err by 2 u sqrt(64) each.
    atol = (1e-6 + 10 * 2 * 2**-24 * 64**0.5) * float(exact[0])
    for values in (pairs.values, default.values):
        torch.testing.assert_close(values.double(), exact, rtol=0, atol=atol)
    assert pairs.spec["operator"]["objective"]["gemm"] == "oneDNN"
    assert "gemm" not in default.spec["operator"]["objective"]


@needs_it
def test_the_products_of_a_network_are_those_of_oneDNN() -> None:  # noqa: N802
    f = objective()
    with sh.fast_gemm():
        g = objective()
        inside = g.gradient(g.theta)
    assert not torch.equal(inside, f.gradient(f.theta))


@pytest.mark.usefixtures("ready")
def test_a_spec_tells_the_product_of_float32_on_the_cpu_alone() -> None:
    with sh.fast_gemm():
        specs = [objective(kind).spec for kind in (torch.float32, torch.float64, torch.bfloat16)]
    assert [spec.get("gemm") for spec in specs] == ["oneDNN", None, "oneDNN"]
    assert "gemm" not in objective().spec


@pytest.mark.parametrize("setting", ["bf16", "tf32"])
def test_what_a_user_allows_torch_is_told_as_it_is(setting: str) -> None:
    MATMUL.fp32_precision = setting
    assert objective().spec["gemm"] == setting


@pytest.mark.usefixtures("ready")
def test_an_objective_is_used_under_the_product_that_it_tells() -> None:
    with sh.fast_gemm():
        inside = objective()
        A = sh.Hessian(inside)
        v = torch.ones(A.size)
        product = A @ v
    outside = objective()
    with pytest.raises(sh.InputError, match="made under, oneDNN, got torch's own: make"):
        inside.value(inside.theta)
    with pytest.raises(sh.InputError, match="made under, oneDNN, got torch's own: make"):
        A @ v  # from the graph that it keeps
    with pytest.raises(sh.InputError, match="made under, oneDNN"):
        inside.first_not_finite(lambda i, x, y: x)
    with sh.fast_gemm():
        assert torch.equal(A @ v, product)
        with pytest.raises(sh.InputError, match="made under, torch's own, got oneDNN: make"):
            outside.gradient(outside.theta)


# ---- the command line ----------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Path:
    options: dict[str, Any] = {"model_options": {"widths": [16]}, "updates": 3, "threads": 1}
    for name, size in (("a", 60), ("b", 600)):
        config = sh.TrainConfig(**options, batch_size=size, checkpoint_losses=[2.35])
        request = {"command": "train", "options": {"name": name}, "inputs": {}}
        sh.save(tmp_path / f"{name}.h5", sh.train(config), request=request)
    return tmp_path / "a.h5"


@needs_it
@pytest.mark.parametrize(
    ("command", "kind"),
    [
        (["eigs", "a.h5", "-k1"], "a.eigs"),
        (["line", "a.h5", "b.h5", "--alphas=0:1:2"], "a-b.line"),
        (["measure", "epsilon-sharpness", "a.h5", "--starts=0"], "a.epsilon-sharpness"),
        (["along", "a.h5", "--sign-starts=1"], "a.along"),
    ],
)
def test_each_analysis_takes_the_option_and_records_it(
    command: list[str], kind: str, run: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parent)
    code, _, err = ask(*command, "--fast-gemm")
    assert code == 0, err
    assert in_force(FLOAT32) is None
    told = str(sh.load(f"{kind}.h5").spec)
    assert told.count("'gemm': 'oneDNN'") == told.count("'objective': '") > 0


@needs_it
def test_a_comparison_takes_the_option_in_all_its_processes(
    run: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parent)
    code, _, err = ask("compare", "a.h5", "b.h5", "--workers=2", "--fast-gemm")
    assert code == 0, err
    for name in ("a.lambda-1", "b.metric-2-1-1e-3"):
        assert "'gemm': 'oneDNN'" in str(sh.load(f"{name}.h5").spec)
    code, _, err = ask("compare", "a.h5", "b.h5", "--workers=1", "-o", "again.h5")
    assert code == 2
    assert "lambda-1.h5 holds the answer to another request (fast_gemm" in err


@needs_it
def test_with_and_without_the_option_are_two_requests(run: Path, ask: Ask) -> None:
    assert ask("eigs", run, "-k1", "--fast-gemm")[0] == 0
    code, out, err = ask("eigs", run, "-k1", "--fast-gemm")
    assert (code, "already done" in err) == (0, True)
    assert "float32 by oneDNN" in out
    code, _, err = ask("eigs", run, "-k1")
    assert code == 2
    assert "holds the answer to another request (fast_gemm" in err
    assert ask("eigs", run, "-k1", "--overwrite")[0] == 0
    assert "fast_gemm" not in ask("show", run.with_name("a.eigs.h5"))[1]  # as in older files


@needs_it
def test_the_option_is_refused_where_it_would_do_nothing(run: Path, ask: Ask) -> None:
    code, _, err = ask("eigs", run, "--fast-gemm", "--dtype=float64")
    assert code == 2
    assert err.splitlines() == [
        "sharpness: error: --fast-gemm needs float32 on the CPU, got float64 on cpu: leave it out, "
        "or give --dtype and --device"
    ]
    assert not run.with_name("a.eigs.h5").exists()


def test_a_refusing_machine_ends_the_command_with_one_line(
    run: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "mm", rounding(torch.mm, 8))
    code, _, err = ask("eigs", run, "--fast-gemm")
    assert code == 2
    assert len(err.splitlines()) == 1
    assert "fast_gemm needs" in err
    assert not run.with_name("a.eigs.h5").exists()
