//! Launchers and ranks.

use super::{case, check, edit, faults_of, gzip, none};
use crate::common::{PROTEINS, Scratch};

#[test]
fn launches() {
    let base = Scratch::new("launches");
    let step = |procid| {
        vec![("SLURM_STEP_ID", "0"), ("SLURM_STEP_NUM_TASKS", "4"), ("SLURM_PROCID", procid)]
    };
    let everywhere = "train c.yaml --set training.use_esm=false";
    check(
        &base,
        &[
            case("singletons", 4, "train c.yaml", none, "4 tasks | srun --mpi=pmix")
                .env(&step("0")),
            case("half a launcher", 4, "train c.yaml", none, "OMPI_COMM_WORLD_ | unset")
                .env(&[("OMPI_COMM_WORLD_RANK", "0")]),
            case("a rank that cannot be", 4, "train c.yaml", none, "rank 4 of 4")
                .env(&[("OMPI_COMM_WORLD_RANK", "4"), ("OMPI_COMM_WORLD_SIZE", "4")]),
            case("a rank that is no number", 4, "train c.yaml", none, "OMPI_COMM_WORLD_ | unset")
                .env(&[("OMPI_COMM_WORLD_RANK", "x"), ("OMPI_COMM_WORLD_SIZE", "4")]),
            case(
                "more ranks than micro-batches",
                2,
                everywhere,
                none,
                "3 ranks | training.micro_batches_per_step | raise it to 3 | allow_idle_ranks",
            )
            .ranks(3),
            case(
                "a configuration that all ranks refuse",
                2,
                "train c.yaml --set training.lrr=1",
                none,
                "rank 0 of 2 | reading the configuration | did you mean lr?",
            )
            .ranks(2),
            case(
                "data that all ranks refuse",
                3,
                everywhere,
                |d| edit(d, "data.csv", "P003,", ","),
                "rank 0 of 3 | data.csv:5",
            )
            .ranks(3),
            case("predict on two ranks", 2, "predict c.yaml", none, "without mpirun").ranks(2),
            case(
                "export on two ranks",
                2,
                "export cache --to h5 --output x",
                none,
                "without mpirun",
            )
            .ranks(2),
        ],
    );
}

/// What one rank alone meets ends all of them: rank 1 cannot unpack the data where it is told to.
#[test]
fn an_error_of_one_rank() {
    let scratch = Scratch::new("one-rank");
    let fasta: String = (0..PROTEINS).map(|i| format!(">P{i}\nMKL{}\n", "AV".repeat(i))).collect();
    scratch.write("p.fasta.gz", gzip(&fasta));
    let wrapper = "[ $OMPI_COMM_WORLD_RANK != 1 ] || export TMPDIR=/proc\nexec \"$@\"\n";
    scratch.write("start.sh", wrapper);
    let launcher = "mpirun --oversubscribe --bind-to none -n 2 sh start.sh";
    let args =
        "train c.yaml --set training.use_esm=false --set dataset.dataset_location=p.fasta.gz";
    let outcome = scratch.launch(launcher, args, &[]);
    let says = ["rank 1 of 2", "reading the data", "/proc", "cannot write"];
    let faults = faults_of(&outcome, 4, &says);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(outcome.seconds < 30.0, "all ranks end at once, not after {} s", outcome.seconds);
}
