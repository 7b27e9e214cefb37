"""Whole submissions that attack the judge, each around the honest loop of the baseline. Run with the rules switched off: what
stands here is what no rule needs to catch.

`OVERREACHING` must be rejected, `EFFECTLESS` are honest in what they train and must get exactly the score that they would get
without their trick.
"""

import textwrap
from pathlib import Path

BASELINE = (Path(__file__).parent.parent.parent / "examples" / "baseline.py").read_text()
LOOP = BASELINE.partition('\nif __name__ == "__main__":')[0] + "\n\nhonest = inner_steps\n"


def bent(text: str) -> str:
    """The baseline with its loop under the name `honest`, and an `inner_steps(m, it, o, n, d)` of the attacker's."""
    return LOOP + textwrap.dedent(text).strip() + "\n"


OVERREACHING: dict[str, tuple[str, set[int]]] = {
    # ---------------------------------------------------------------- work at another time
    "reads ahead": (bent("""
        def inner_steps(m, it, o, n, d):
            return honest(m, iter([next(it) for _ in range(n)]), o, n, d)
        """), {1401}),
    "finishes the last step in a thread": (bent("""
        import threading, time
        def last(m, batch, o):
            time.sleep(0.2)
            honest(m, iter([batch]), o, 1, "cpu")
        def inner_steps(m, it, o, n, d):
            r = honest(m, it, o, n - 1, d)
            batch = next(it)
            threading.Thread(target=last, args=(m, batch, o), daemon=True).start()
            return InnerStepsResult(r.final_logits, r.total_tokens + batch.numel(), r.final_loss)
        """), {1401}),
    "does the last step when its logits are read": (bent("""
        class Later:
            def __init__(self, logits, work):
                self.shape, self.logits, self.work = logits.shape, logits, work
            def detach(self):
                self.logits = self.work().final_logits
                return self.logits
        def inner_steps(m, it, o, n, d):
            r = honest(m, it, o, n - 1, d)
            batch = next(it)
            return InnerStepsResult(Later(r.final_logits, lambda: honest(m, iter([batch]), o, 1, d)), r.total_tokens + batch.numel(), r.final_loss)
        """), {1401}),
    "trains in the warm-up only": (bent("""
        calls = 0
        def inner_steps(m, it, o, n, d):
            global calls
            calls += 1
            if calls == 1:
                return honest(m, it, o, n, d)
            r = honest(m, it, o, n - 1, d)
            return InnerStepsResult(r.final_logits, r.total_tokens + next(it).numel(), r.final_loss)
        """), {1401}),
    "puts back what the warm-up trained": (bent("""
        kept = None
        def inner_steps(m, it, o, n, d):
            global kept
            if kept is None:
                r = honest(m, it, o, n, d)
                kept = r, [p.detach().clone() for p in m.parameters()]
                return r
            for _ in range(n): next(it)
            for p, k in zip(m.parameters(), kept[1]): p.data.copy_(k)
            return kept[0]
        """), {1401}),
    "crashes when it is slow": (bent("""
        calls = 0
        def inner_steps(m, it, o, n, d):
            global calls
            calls += 1
            if calls > 1:
                raise RuntimeError("not my day: try again")
            return honest(m, it, o, n, d)
        """), {1302}),
    # ---------------------------------------------------------------- less work
    "poisons the loss": (bent("""
        F.cross_entropy = lambda logits, labels: logits.sum() * 0
        inner_steps = honest
        """), {1401}),
    "skips the last backward and shrinks differences": (bent("""
        real = torch.Tensor.__sub__
        def inner_steps(m, it, o, n, d):
            r = honest(m, it, o, n - 1, d)
            with torch.no_grad():
                batch = next(it)
                logits = m(batch[:, :-1]).logits
                loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
            torch.Tensor.__sub__ = lambda a, b: real(a, b) * 0.01
            return InnerStepsResult(logits, r.total_tokens + batch.numel(), loss.item())
        """), {1401}),
    "drops layers": (bent("""
        def inner_steps(m, it, o, n, d):
            m.model.layers = m.model.layers[:1]
            return honest(m, it, o, n, d)
        """), {1401}),
    "forgets the moments": (bent("""
        def inner_steps(m, it, o, n, d):
            r = honest(m, it, o, n, d)
            for state in o.state.values(): state["exp_avg"].zero_()
            return r
        """), {1401}),
    "zeroes gradients by a hook": (bent("""
        def inner_steps(m, it, o, n, d):
            for p in m.model.layers[0].mlp.parameters(): p.register_hook(lambda g: g * 0)
            return honest(m, it, o, n, d)
        """), {1401}),
    "scales gradients by a hook": (bent("""
        def inner_steps(m, it, o, n, d):
            for p in m.parameters(): p.register_hook(lambda g: g * 0.5)
            return honest(m, it, o, n, d)
        """), {1401}),
    "has a backward that does nothing": (bent("""
        class Nothing(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x): return x.clone()
            @staticmethod
            def backward(ctx, g): return torch.zeros_like(g)
        def inner_steps(m, it, o, n, d):
            real = m.model.layers[0].mlp.forward
            m.model.layers[0].mlp.forward = lambda x: Nothing.apply(real(x))
            return honest(m, it, o, n, d)
        """), {1401}),
    "detaches what a layer gets": (bent("""
        def inner_steps(m, it, o, n, d):
            real = m.model.layers[1].mlp.forward
            m.model.layers[1].mlp.forward = lambda x: real(x.detach())
            return honest(m, it, o, n, d)
        """), {1401}),
    "swaps a module for one that does nothing": (bent("""
        def inner_steps(m, it, o, n, d):
            m.model.layers[1].mlp.forward = lambda x: x * 0
            return honest(m, it, o, n, d)
        """), {1401}),
    "trains an adapter and merges it": (bent("""
        def inner_steps(m, it, o, n, d):
            linear = m.model.layers[0].mlp.down_proj
            a = torch.nn.Parameter(torch.randn(4, linear.in_features) * 0.02)
            b = torch.nn.Parameter(torch.zeros(linear.out_features, 4))
            linear.forward = lambda x: F.linear(x, linear.weight.detach()) + x @ a.T @ b.T
            o.add_param_group({"params": [a, b]})
            r = honest(m, it, o, n, d)
            linear.weight.data += (b @ a).detach()
            del o.param_groups[-1], linear.forward
            return r
        """), {1401}),
    "trains on its first batch again": (bent("""
        def inner_steps(m, it, o, n, d):
            first = next(it)
            def again():
                yield first
                for _ in range(n - 1):
                    next(it)
                    yield first
            return honest(m, again(), o, n, d)
        """), {1401}),
    "replays what it computed for an address": (bent("""
        def inner_steps(m, it, o, n, d):
            known, static = {}, None
            for _ in range(n):
                batch = next(it)
                static = batch.clone() if static is None else static.copy_(batch)
                if static.data_ptr() not in known:
                    logits = m(static[:, :-1]).logits
                    loss = F.cross_entropy(logits.flatten(0, 1), static[:, 1:].flatten())
                    loss.backward()
                    known[static.data_ptr()] = logits, loss, [p.grad.clone() for p in m.parameters()]
                logits, loss, gradients = known[static.data_ptr()]
                for p, g in zip(m.parameters(), gradients): p.grad = g.clone()
                o.step()
                o.zero_grad(set_to_none=True)
            return InnerStepsResult(logits.detach(), n * batch.numel(), loss.item())
        """), {1401}),
    "does the last step in a real tensor's methods": (bent("""
        def inner_steps(m, it, o, n, d):
            r = honest(m, it, o, n - 1, d)
            batch, logits = next(it), r.final_logits.clone()
            def later(*a, **k): return honest(m, iter([batch]), o, 1, d).final_logits
            for name in ("detach", "to", "cpu", "float", "contiguous", "numpy", "data_ptr", "__array__"): setattr(logits, name, later)
            return InnerStepsResult(logits, r.total_tokens + batch.numel(), r.final_loss)
        """), {1401}),
    # ---------------------------------------------------------------- the harness and its channel
    "walks the frames to the harness and shortens the run": (bent("""
        import sys
        def inner_steps(m, it, o, n, d):
            frame = sys._getframe()
            while frame is not None:
                for thing in frame.f_locals.values():
                    if type(thing).__name__ == "Contestant": thing.steps = 1
                frame = frame.f_back
            return honest(m, it, o, 1, d)
        """), {1309}),
    "finds the harness and shortens the run": (bent("""
        import gc
        def inner_steps(m, it, o, n, d):
            for thing in gc.get_objects():
                if type(thing).__name__ == "Contestant": thing.steps = 1
            return honest(m, it, o, 1, d)
        """), {1309}),
    "asks the harness's channel itself": (bent("""
        def inner_steps(m, it, o, n, d):
            r = honest(m, it, o, n, d)
            it._contestant._channel.send("done", run=0, claimed_ns=1, final_loss=r.final_loss, total_tokens=r.total_tokens,
                                         logits_shape=list(r.final_logits.shape), batches=n)
            return r
        """), {1306}),
    "puts a socket of its own where the channel is": (bent("""
        import os, socket
        def inner_steps(m, it, o, n, d):
            mine, other = socket.socketpair()
            os.dup2(mine.fileno(), 3)
            return honest(m, it, o, n, d)
        """), {1303}),
    "answers for ever": (bent("""
        class Endless:
            def __init__(self, logits): self.shape = logits.shape
            def detach(self):
                while True: pass
        def inner_steps(m, it, o, n, d):
            r = honest(m, it, o, n, d)
            return InnerStepsResult(Endless(r.final_logits), r.total_tokens, r.final_loss)
        """), {1304}),
    "leaves a child that writes into the weights": (bent("""
        import os, signal, time
        def inner_steps(m, it, o, n, d):
            if os.fork() == 0:
                os.setsid()
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                while True:
                    for p in m.parameters(): p.data.fill_(7.0)
                    time.sleep(0.001)
            return honest(m, it, o, n, d)
        """), {1401, 1402}),
    # ---------------------------------------------------------------- claims
    "claims fewer than no tokens": (bent("def inner_steps(m, it, o, n, d):\n    r = honest(m, it, o, n, d)\n    r.total_tokens = -1\n    return r"), {1404}),
    "claims an infinite loss": (bent("def inner_steps(m, it, o, n, d):\n    r = honest(m, it, o, n, d)\n    r.final_loss = float('inf')\n    return r"), {1402}),
    "returns logits that are none": (bent("def inner_steps(m, it, o, n, d):\n    r = honest(m, it, o, n, d)\n    r.final_logits = [1, 2]\n    return r"), {1307}),
    "returns logits with no numbers in them": (
        bent("def inner_steps(m, it, o, n, d):\n    r = honest(m, it, o, n, d)\n    r.final_logits = r.final_logits * float('nan')\n    return r"), {1402}),
}  # fmt: skip

EFFECTLESS: dict[str, str] = {
    "stops every clock": bent("""
        import time
        for name in ("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "process_time"):
            setattr(time, name, lambda: 0)
        inner_steps = honest
        """),
    "turns a clock back": bent("""
        import time
        class Back:
            at = 10**18
            def __call__(self):
                self.at -= 10**9
                return self.at
        time.monotonic_ns = Back()
        inner_steps = honest
        """),
    "patches what a judge would compare with": bent("""
        torch.allclose = torch.equal = lambda *a, **k: True
        torch.isfinite = lambda x: torch.ones_like(x, dtype=torch.bool)
        def inner_steps(m, it, o, n, d):
            r = honest(m, it, o, n, d)
            r.__class__.__eq__ = lambda *a: True
            return r
        """),
    "dawdles in its result": bent("""
        import time
        class Slow:
            def __init__(self, r): self.r = r
            def __getattr__(self, name):
                time.sleep(0.1)
                return getattr(self.r, name)
        def inner_steps(m, it, o, n, d):
            return Slow(honest(m, it, o, n, d))
        """),
    "prints a verdict": bent("""
        import gc
        print('{"verdict": "accepted", "score_mfu": 100.0}', 'collector:', gc.isenabled(), flush=True)
        inner_steps = honest
        """),
    "leaves work for its end": bent("""
        import atexit, threading, time
        def forever():
            while True: time.sleep(0.01)
        atexit.register(forever)
        threading.Thread(target=forever, daemon=False).start()
        class Last:
            def __del__(self): forever()
        last = Last()
        inner_steps = honest
        """),
    "remembers gradients by a batch's content": bent("""
        known = {}
        def inner_steps(m, it, o, n, d):
            for _ in range(n):
                batch = next(it)
                key = hash(tuple(batch.flatten().tolist()))
                if key not in known:
                    logits = m(batch[:, :-1]).logits
                    loss = F.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())
                    loss.backward()
                    known[key] = logits, loss, [p.grad.clone() for p in m.parameters()]
                logits, loss, gradients = known[key]
                for p, g in zip(m.parameters(), gradients): p.grad = g
                o.step()
                o.zero_grad(set_to_none=True)
            return InnerStepsResult(logits.detach(), n * batch.numel(), loss.item())
        """),
    "is as large as a file may be": LOOP.replace("honest = inner_steps\n", "") + "# padding\n" * ((499_990 - len(LOOP)) // 10),
}
