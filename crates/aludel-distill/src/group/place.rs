//! Reads which of several processes this one is from what launchers put into the environment.
//!
//! `RANK` and `WORLD_SIZE` (torchrun), or those of Open MPI, of MPICH and of Slurm's `srun`, and `MASTER_ADDR`, where the first process listens. Without
//! `MASTER_ADDR` a process is alone, whatever a scheduler says of tasks: a job script may well run one program in an allocation of many.

use aludel_document::Problem;

use crate::error::Error;

/// One of several processes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which, from 0.
    pub rank: usize,
    /// Of how many; at least two.
    pub size: usize,
    /// Which on its machine, from 0.
    pub local: usize,
    /// The machine of the first.
    pub host: String,
    /// Where that one listens.
    pub port: u16,
}

/// The port where nothing else is said, which is torch's.
const PORT: u16 = 29500;

/// Names of a process's number, of how many there are, and of its number on its machine.
const LAUNCHERS: [[&str; 3]; 4] = [
    ["RANK", "WORLD_SIZE", "LOCAL_RANK"],
    ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"],
    ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"],
    ["SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"],
];

impl Place {
    /// That of this process; `None` where it is alone.
    ///
    /// # Errors
    /// [`Error::Problems`] where the environment contradicts itself.
    pub fn of_environment() -> Result<Option<Self>, Error> {
        Self::of(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn of(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, Error> {
        let Some(host) = variable("MASTER_ADDR") else { return Ok(None) };
        let number = |name: &str| -> Result<Option<usize>, Error> {
            let parsed = variable(name).map(|value| value.parse().map_err(|_| (name.to_owned(), value)));
            parsed.transpose().map_err(|(name, value)| problem(format!("{name}={value} is no number")))
        };
        let launcher = LAUNCHERS
            .into_iter()
            .find(|[rank, size, _]| variable(rank).is_some() && variable(size).is_some());
        let Some([rank_name, size_name, local_name]) = launcher else { return Ok(None) };
        let (rank, size) = (number(rank_name)?.unwrap_or(0), number(size_name)?.unwrap_or(1));
        if rank >= size {
            return Err(problem(format!("{rank_name}={rank} is not below {size_name}={size}")));
        }
        if size == 1 {
            return Ok(None);
        }
        let port = match variable("MASTER_PORT") {
            None => PORT,
            Some(port) => port.parse().map_err(|_| problem(format!("MASTER_PORT={port} is no port")))?,
        };
        // There torchrun itself listens.
        let is_taken = variable("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|value| value == "True");
        let port = if is_taken { port.wrapping_add(1).max(1024) } else { port };
        Ok(Some(Self { rank, size, local: number(local_name)?.unwrap_or(0), host, port }))
    }
}

fn problem(message: String) -> Error {
    Problem::general(format!("the environment says which process this is: {message}"))
        .with_hint("start it by torchrun, mpirun or srun, or unset MASTER_ADDR to train with one process")
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Option<Place>, String> {
        let variable = |name: &str| {
            let found =
                text.split_whitespace().filter_map(|word| word.split_once('=')).find(|(key, _)| *key == name);
            found.map(|(_, value)| value.to_owned())
        };
        Place::of(variable).map_err(|error| error.to_string())
    }

    fn place(rank: usize, size: usize, local: usize, port: u16) -> Option<Place> {
        Some(Place { rank, size, local, host: "a".to_owned(), port })
    }

    #[test]
    fn launchers_say_which_process_this_is() {
        for (text, want) in [
            ("", None),
            ("RANK=1 WORLD_SIZE=4", None),
            ("MASTER_ADDR=a", None),
            ("MASTER_ADDR=a RANK=0 WORLD_SIZE=1", None),
            ("MASTER_ADDR=a MASTER_PORT=7000 RANK=3 WORLD_SIZE=4 LOCAL_RANK=1", place(3, 4, 1, 7000)),
            ("MASTER_ADDR=a RANK=3 WORLD_SIZE=4 SLURM_PROCID=9 SLURM_NTASKS=10", place(3, 4, 0, 29500)),
            (
                "MASTER_ADDR=a MASTER_PORT=7000 RANK=0 WORLD_SIZE=2 TORCHELASTIC_USE_AGENT_STORE=True",
                place(0, 2, 0, 7001),
            ),
            (
                "MASTER_ADDR=a OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_RANK=1",
                place(1, 2, 1, 29500),
            ),
            ("MASTER_ADDR=a SLURM_PROCID=5 SLURM_NTASKS=8 SLURM_LOCALID=1", place(5, 8, 1, 29500)),
            ("SLURM_PROCID=0 SLURM_NTASKS=8", None),
        ] {
            assert_eq!(of(text), Ok(want), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (text, want) in [
            ("MASTER_ADDR=a RANK=2 WORLD_SIZE=2", "RANK=2 is not below WORLD_SIZE=2"),
            ("MASTER_ADDR=a RANK=x WORLD_SIZE=2", "RANK=x is no number"),
            ("MASTER_ADDR=a RANK=0 WORLD_SIZE=2 MASTER_PORT=70000", "MASTER_PORT=70000 is no port"),
        ] {
            let message = of(text).unwrap_err();
            assert!(message.contains(want), "{message}");
        }
    }
}
