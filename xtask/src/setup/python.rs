//! Virtual environments with the Python packages that tests need, each under the target folder.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::shell::{program, run};
use crate::workspace;

/// One virtual environment.
pub(crate) struct Environment {
    /// What it holds, for the user who waits.
    what: &'static str,
    /// Below the target folder.
    folder: &'static str,
    /// Below the repository's root.
    requirements: &'static str,
}

/// The clients that the tests speak through.
pub(crate) const CLIENTS: Environment = Environment {
    what: "the Python clients of the tests",
    folder: "clients",
    requirements: "tests/clients/requirements.txt",
};

/// What writes the model that the engine tier runs.
pub(crate) const MODEL: Environment = Environment {
    what: "what writes a tiny model",
    folder: "engine/python",
    requirements: "tests/engine/requirements.txt",
};

/// The interpreter that can import the clients.
pub(crate) fn interpreter() -> PathBuf {
    CLIENTS.interpreter()
}

impl Environment {
    /// The interpreter that can import the packages.
    pub(crate) fn interpreter(&self) -> PathBuf {
        self.path().join("bin/python3")
    }

    /// Builds the environment anew when the requirements changed since it was built.
    pub(crate) fn ensure(&self) -> Result<()> {
        let Self { what, requirements, .. } = *self;
        let wanted = fs::read_to_string(workspace::root().join(requirements));
        let wanted = wanted.context(requirements)?;
        let stamp = self.path().join("installed.txt");
        if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
            return Ok(());
        }
        println!("setup: installing {what} ({requirements})");
        run(program("python3").args(["-m", "venv", "--clear"]).arg(self.path()))?;
        let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
        run(program(self.interpreter()).args(pip).arg("--requirement").arg(requirements))?;
        // Written last: an environment that was interrupted has no stamp and is built again.
        fs::write(&stamp, wanted).with_context(|| stamp.display().to_string())
    }

    fn path(&self) -> PathBuf {
        workspace::target().join(self.folder)
    }
}
