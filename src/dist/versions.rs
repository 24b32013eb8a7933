//! The MPI that this program was built with, and the one it runs with.

use crate::error::{Error, Result};
use std::fmt;

/// Whose MPI it is. All but Open MPI share MPICH's binary interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// Open MPI, or what is made of it (Spectrum MPI).
    OpenMpi,
    /// MPICH itself.
    Mpich,
    /// Intel MPI.
    Intel,
    /// Cray MPICH.
    Cray,
    /// MVAPICH.
    Mvapich,
    /// None of these.
    Other,
}

impl fmt::Display for Vendor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Vendor::OpenMpi => "Open MPI",
            Vendor::Mpich => "MPICH",
            Vendor::Intel => "Intel MPI",
            Vendor::Cray => "Cray MPICH",
            Vendor::Mvapich => "MVAPICH",
            Vendor::Other => "an unknown MPI",
        })
    }
}

impl Vendor {
    /// What starts programs of this MPI, for `ranks` processes, as one would type it.
    pub fn launchers(self, ranks: usize) -> String {
        match self {
            Vendor::OpenMpi => {
                format!("`mpirun -n {ranks} trainer …` of Open MPI, or `srun --mpi=pmix trainer …`")
            }
            Vendor::Cray => "`srun trainer …`".to_string(),
            Vendor::Mpich | Vendor::Intel | Vendor::Mvapich => {
                format!("`mpiexec -n {ranks} trainer …` of {self}, or `srun --mpi=pmi2 trainer …`")
            }
            Vendor::Other => format!("the mpiexec of that MPI, with -n {ranks}"),
        }
    }
}

/// An MPI library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MpiLibrary {
    /// Whose it is.
    pub vendor: Vendor,
    /// Its version, such as `4.1.4`; empty where it is not known.
    pub version: String,
}

impl fmt::Display for MpiLibrary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let blank = if self.version.is_empty() { "" } else { " " };
        write!(f, "{}{blank}{}", self.vendor, self.version)
    }
}

/// Version numbers that one header or another defines. Within [`MpiLibrary::built`] the header's
/// own stand in front of these, which are then not used.
#[allow(dead_code)]
mod undefined {
    pub const OMPI_MAJOR_VERSION: u32 = 0;
    pub const OMPI_MINOR_VERSION: u32 = 0;
    pub const OMPI_RELEASE_VERSION: u32 = 0;
    pub const I_MPI_VERSION: &[u8] = b"\0";
    pub const MVAPICH2_VERSION: &[u8] = b"\0";
    pub const MVAPICH_VERSION: &[u8] = b"\0";
    pub const CRAY_MPICH_VERSION: &[u8] = b"\0";
    pub const MPICH_VERSION: &[u8] = b"\0";
}

impl MpiLibrary {
    /// The one whose header this program was compiled with.
    pub fn built() -> MpiLibrary {
        use undefined::*;
        {
            // An inner scope's names win: the header's where it has them, the above where not.
            #[allow(unused_imports)]
            use mpi::ffi::*;
            if OMPI_MAJOR_VERSION > 0 {
                let (minor, release) = (OMPI_MINOR_VERSION, OMPI_RELEASE_VERSION);
                let version = format!("{OMPI_MAJOR_VERSION}.{minor}.{release}");
                return MpiLibrary { vendor: Vendor::OpenMpi, version };
            }
            let known: [(Vendor, &[u8]); 5] = [
                (Vendor::Intel, I_MPI_VERSION),
                (Vendor::Mvapich, MVAPICH2_VERSION),
                (Vendor::Mvapich, MVAPICH_VERSION),
                (Vendor::Cray, CRAY_MPICH_VERSION),
                (Vendor::Mpich, MPICH_VERSION),
            ];
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_matches('\0').to_string();
            known
                .into_iter()
                .map(|(vendor, version)| MpiLibrary { vendor, version: text(version) })
                .find(|library| !library.version.is_empty())
                .unwrap_or(MpiLibrary { vendor: Vendor::Other, version: String::new() })
        }
    }

    /// The one that was loaded. It may be asked before MPI is started.
    pub fn running() -> MpiLibrary {
        Self::parse(&mpi::environment::library_version().unwrap_or_default())
    }

    /// Reads what a library says of itself.
    fn parse(text: &str) -> MpiLibrary {
        let vendors = [
            ("Open MPI", Vendor::OpenMpi),
            ("Spectrum MPI", Vendor::OpenMpi),
            ("Intel(R) MPI", Vendor::Intel),
            ("CRAY MPICH", Vendor::Cray),
            ("MVAPICH", Vendor::Mvapich),
            ("MPICH", Vendor::Mpich),
        ];
        let found = vendors
            .into_iter()
            .find_map(|(name, vendor)| Some((vendor, &text[text.find(name)? + name.len()..])));
        let (vendor, rest) = found.unwrap_or((Vendor::Other, text));
        let start = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        // MVAPICH2's own name ends in a digit.
        let rest = match vendor {
            Vendor::Mvapich => rest[start..].strip_prefix('2').unwrap_or(&rest[start..]),
            _ => &rest[start..],
        };
        let rest = rest.trim_start_matches(|c: char| !c.is_ascii_digit());
        let version: String =
            rest.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
        MpiLibrary { vendor, version: version.trim_end_matches('.').to_string() }
    }

    fn major(&self) -> Option<u32> {
        self.version.split('.').next()?.parse().ok()
    }

    /// Refuses to run with another MPI than the one compiled against (exit code 4). The kin of
    /// MPICH share a binary interface: between them any version serves.
    pub fn check(built: &MpiLibrary, running: &MpiLibrary) -> Result<()> {
        let open = |library: &MpiLibrary| library.vendor == Vendor::OpenMpi;
        let other_major = built.vendor == running.vendor
            && built.major().zip(running.major()).is_some_and(|(a, b)| a != b);
        let unknown = [built, running].iter().any(|library| library.vendor == Vendor::Other);
        if open(built) == open(running) && !other_major || unknown {
            return Ok(());
        }
        Err(Error::launch(format!(
            "this program was built with {built}, but the MPI library it finds here is {running}"
        ))
        .hint(
            "load the module of the MPI that it was built with (.venv/mpi.txt beside its source \
             says which), or build it with this one: `bash jobs/setup.sh`",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn library(text: &str) -> MpiLibrary {
        MpiLibrary::parse(text)
    }

    #[test]
    fn libraries_name_themselves() {
        for (text, wanted) in [
            (
                "Open MPI v4.1.4, package: Debian OpenMPI, ident: 4.1.4, repo rev: v4.1.4",
                "Open MPI 4.1.4",
            ),
            ("MPICH Version:\t4.0.2\nMPICH Release date:\tThu Apr", "MPICH 4.0.2"),
            ("Intel(R) MPI Library 2021.8 for Linux* OS\n", "Intel MPI 2021.8"),
            (
                "MPI VERSION    : CRAY MPICH version 8.1.25.17 (ANL base 3.4a2)",
                "Cray MPICH 8.1.25.17",
            ),
            ("MVAPICH2 Version      :\t2.3.7\nMVAPICH2 Release date : Wed", "MVAPICH 2.3.7"),
            ("", "an unknown MPI"),
        ] {
            assert_eq!(library(text).to_string(), wanted);
        }
    }

    /// The header's names are seen, and the loaded library is the header's.
    #[test]
    fn this_program() {
        let (built, running) = (MpiLibrary::built(), MpiLibrary::running());
        assert_ne!(built.vendor, Vendor::Other);
        assert!(!built.version.is_empty());
        assert_eq!(built.vendor, running.vendor);
        MpiLibrary::check(&built, &running).unwrap();
    }

    #[test]
    fn another_mpi_is_refused() {
        let check = |a: &str, b: &str| MpiLibrary::check(&library(a), &library(b));
        assert!(check("Open MPI v4.1.4", "Open MPI v4.0.1").is_ok());
        assert!(check("MPICH Version: 4.0.2", "CRAY MPICH version 8.1.25").is_ok());
        assert!(check("MPICH Version: 4.0.2", "something else").is_ok());
        for (built, running) in [
            ("Open MPI v4.1.4", "Open MPI v5.0.1"),
            ("Open MPI v4.1.4", "MPICH Version: 4.0.2"),
            ("Intel(R) MPI Library 2021.8", "Open MPI v4.1.4"),
            ("MPICH Version: 3.4", "MPICH Version: 4.0.2"),
        ] {
            let error = check(built, running).unwrap_err();
            assert_eq!(error.code(), 4, "{built} {running}");
            assert!(error.to_string().contains("jobs/setup.sh"), "{error}");
        }
    }
}
