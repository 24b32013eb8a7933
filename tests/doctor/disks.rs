//! File systems on which a run would end or hang.

use super::{Case, case, check, mpirun};
use std::fs;

const MOUNTS: &str = "unshare -m mount -t tmpfs tmpfs /mnt";

/// The run's directory is `disk/out`, on something that `does` makes.
fn on_disk(name: &'static str, says: &'static str, does: &str) -> Case {
    let script = format!("mkdir disk\n{does}\nexec \"$@\"\n");
    case(name, 4, "doctor c.yaml --set run.output_dir=disk/out", says)
        .script("unshare -m", &script)
        .needs(MOUNTS)
}

#[test]
fn disks() {
    let full = "mount -t tmpfs -o size=1m tmpfs disk; head -c 2000000 /dev/zero >disk/x";
    let table = [
        on_disk("a full disk", "run.output_dir: | No space left | free some space", full),
        on_disk("a small disk", "nearly full | free some space",
            "mount -t tmpfs -o size=9m tmpfs disk"),
        on_disk("no more files", "run.output_dir: | No space left | free some space",
            "mount -t tmpfs -o size=90m,nr_inodes=3 tmpfs disk"),
        on_disk("few files", "no more files can be made",
            "mount -t tmpfs -o size=2g,nr_inodes=15 tmpfs disk"),
        on_disk("a read-only disk", "Read-only file system | choose a directory you may write to",
            "mount --bind disk disk; mount -o remount,ro,bind disk"),
        Case { code: 0, ..on_disk("a disk in memory", "tmpfs | lost with the node | on a disk",
            "mount -t tmpfs -o size=5g tmpfs disk") },
        case("a disk that hangs", 4, "doctor c.yaml --set run.output_dir=disk/out",
            "did not answer within 10 s, while making a directory | hangs | ls ")
            .script("unshare -m", "\
mkdir disk
truncate -s 32M image && mkfs.ext4 -q image && mount -o loop image disk || exit 77
trap 'fsfreeze -u disk; sleep 1; umount -l disk' EXIT
fsfreeze -f disk
\"$@\"
")
            .needs("cd $(mktemp -d); truncate -s 9M i && mkfs.ext4 -q i && unshare -m mount -o loop i /mnt"),
        case("an immutable directory", 4, "doctor c.yaml --set run.output_dir=disk/out",
            "run.output_dir: | Operation not permitted | choose a directory you may write to")
            .script("", "mkdir disk; chattr +i disk || exit 77; trap 'chattr -i disk' EXIT\n\"$@\"\n")
            .needs("cd $(mktemp -d); mkdir d && chattr +i d && chattr -i d"),
        case("someone else's directory", 4, "doctor c.yaml --set run.output_dir=disk/out",
            "run.output_dir: | Permission denied | choose a directory you may write to")
            .script("", "mkdir disk; chmod a-w disk; exec setpriv --bounding-set=-dac_override --inh-caps=-dac_override \"$@\"\n")
            .needs("setpriv --bounding-set=-dac_override --inh-caps=-dac_override true"),
        case("a file in the place of a directory", 4, "doctor c.yaml --set run.output_dir=data.csv/out",
            "data.csv | a directory | "),
        case("a link to nowhere", 4, "doctor c.yaml --set esm.cache_dir=link",
            "esm.cache_dir: | a link to nowhere/at/all, which does not exist | remove the link")
            .prepare(|s| std::os::unix::fs::symlink("nowhere/at/all", s.path("link")).unwrap()),
        case("no temporary directory", 4, "doctor", "TMPDIR: | does not exist | mkdir -p")
            .env("TMPDIR", "/nowhere/at/all"),
        case("a temporary directory that cannot be written to", 4, "doctor", "TMPDIR: /proc")
            .env("TMPDIR", "/proc"),
        case("each rank has a disk of its own", 4, "doctor c.yaml --set run.output_dir=disk",
            "files of other ranks are not seen | a directory that all nodes share")
            .script(&format!("{} unshare -m", mpirun(2)),
                "mkdir -p disk; mount -t tmpfs -o size=2g tmpfs disk; exec \"$@\"\n")
            .needs(MOUNTS),
        case("data that are not there", 4, "doctor c.yaml --set dataset.dataset_location=no.csv",
            "dataset.dataset_location: | no.csv | No such file | check the path"),
        case("data that do not answer", 4, "doctor c.yaml",
            "dataset.dataset_location: | did not answer within 10 s, while reading its beginning")
            .script("", "rm data.csv; mkfifo data.csv; exec \"$@\"\n"),
        case("data behind a Git-LFS pointer", 4, "doctor c.yaml", "Git-LFS pointer | git lfs pull")
            .prepare(|s| fs::write(s.path("data.csv"), "version https://git-lfs.github.com/spec/v1\n").unwrap()),
    ];
    check(&table);
}
