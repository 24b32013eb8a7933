//! Configurations that a run here would refuse.

use super::{case, check, mpirun};

#[test]
fn configurations() {
    let table = [
        case(
            "an unknown key",
            4,
            "doctor c.yaml --set training.lrr=1",
            "did you mean lr | exit code 2 | remedy",
        ),
        case(
            "an unknown key, on two ranks",
            4,
            "doctor c.yaml --set training.lrr=1",
            "did you mean lr | 1 that would stop",
        )
        .launcher(&mpirun(2)),
        case("no such configuration", 4, "doctor d.yaml", "d.yaml | check the path"),
        case(
            "more ranks than micro-batches",
            4,
            "doctor c.yaml",
            "3 ranks and 2 micro-batches a step | micro_batches_per_step to 3 | allow_idle_ranks",
        )
        .launcher(&mpirun(3)),
        case(
            "NCCL without a GPU",
            4,
            "doctor c.yaml --set distributed.backend=nccl",
            "distributed.backend: nccl needs GPUs, and there are none | use auto or mpi | exit code 2",
        )
        .needs("[ ! -e /proc/driver/nvidia/version ]"),
        case(
            "CUDA without a GPU",
            4,
            "doctor c.yaml --set run.device=cuda",
            "no GPU is visible to this rank | CUDA_VISIBLE_DEVICES | exit code 4",
        )
        .needs("[ ! -e /proc/driver/nvidia/version ]"),
        case(
            "fp16 on a CPU",
            4,
            "doctor c.yaml --set training.precision=fp16",
            "fp16 needs a GPU | fp32 or bf16",
        ),
        case(
            "a column that is not there",
            4,
            "doctor c.yaml --set dataset.sequence_column_name=nope",
            "nope | exit code 3",
        ),
        case(
            "a validation part that is too large",
            4,
            "doctor c.yaml --set dataset.val_size=999",
            "val_size | remedy",
        ),
    ];
    check(&table);
}
