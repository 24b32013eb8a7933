"""One training step of Mamba against transformers' Mamba without CUDA kernels.

Both sides: forward, mean cross entropy of logits[b, t] against targets[b, t] over all positions,
backward, AdamW (lr 4e-4, betas 0.9 0.98, decay 0.01). Vocabulary 59, state 16, conv 4, expand 2,
tied head, fp32. Ours is the example `bench_mamba_step`, which prints
{"seconds": [one entry a step, warm-up excluded], "loss": ...}.
"""

import statistics

from common import THREADS, arguments, example, gemm_rate, header, json_line, measured, ratio, run, save, seconds

import torch
import torch.nn.functional as F
from transformers import MambaConfig, MambaForCausalLM

VOCAB, STATE, CONV, EXPAND = 59, 16, 4, 2


def make_peer(layers, d):
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=VOCAB, hidden_size=d, num_hidden_layers=layers, state_size=STATE,
                         conv_kernel=CONV, expand=EXPAND, use_cache=False)
    model = MambaForCausalLM(config).train()
    return model, torch.optim.AdamW(model.parameters(), lr=4e-4, betas=(0.9, 0.98), weight_decay=0.01)


def peer_step(model, optimiser, ids, targets):
    optimiser.zero_grad(set_to_none=True)
    logits = model(input_ids=ids, use_cache=False).logits
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    loss.backward()
    optimiser.step()
    return loss.item()


def ours(args, repeats):
    shape = dict(layers=args.layers, d_model=args.d_model, batch=args.batch, length=args.length)
    command = [example("bench_mamba_step"), "--repeats", str(repeats), "--threads", str(THREADS)]
    for key, value in shape.items():
        command += ["--" + key.replace("_", "-"), str(value)]
    said = json_line(run(command)[1], "seconds")
    assert said["loss"] == said["loss"], "our loss is not a number"
    return statistics.median(said["seconds"])


def main():
    args = arguments(__doc__, repetitions=3, layers=4, d_model=256, batch=4, length=256, our_steps=20)
    tokens = args.batch * args.length
    record = header(f"Mamba training step, {args.layers} layers x {args.d_model}, {args.batch} x {args.length} tokens")
    torch.set_num_threads(THREADS)
    model, optimiser = make_peer(args.layers, args.d_model)
    # The tied table counts once, as the head: the only product it takes part in.
    parameters = sum(p.numel() for p in model.parameters())
    flop = 6 * parameters * tokens
    print(f"# {parameters} parameters, 6 x parameters x tokens = {flop:.4g} FLOP a step (scan not counted)")
    ids, targets = torch.randint(8, VOCAB, (2, args.batch, args.length))
    peer_step(model, optimiser, ids[:, :8], targets[:, :8])
    theirs, mine, gemm, shares = [], [], [], []
    for _ in range(args.repetitions):
        theirs.append(seconds(lambda: peer_step(model, optimiser, ids, targets))[0])
        gemm.append(gemm_rate())
        if not args.peer_only:
            mine.append(ours(args, args.our_steps))
            shares.append(flop / mine[-1] / gemm[-1])
    rate = statistics.median(gemm)
    print(f"GEMM, fp32 2048^3                  {rate / 1e9:10.1f} GFLOP/s  of {[round(g / 1e9) for g in gemm]}")
    record["gemm_flop_per_s"] = {"median": rate, "all": gemm}
    peer_s = measured(record, "transformers, no kernels", theirs, "tokens", tokens)
    if not args.peer_only:
        our_s = measured(record, "ours", mine, "tokens", tokens)
        ratio(record, "ours over transformers", peer_s / our_s, 200)
        ratio(record, "share of the GEMM rate", statistics.median(shares), 0.30)
    save(record, "mamba_step")


if __name__ == "__main__":
    main()
