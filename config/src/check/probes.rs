//! What the kernel is asked.

use std::path::PathBuf;

use super::Checker;
use crate::read::tree::Node;
use crate::schema::{self, Brief, File, Switch};
use crate::validated::{CudaProbe, Driver, Probes};

/// Places of the kernel's map of devices are shared with the drivers that are known.
const DEVICES_MOST: usize = 64;

impl Checker<'_> {
    pub(super) fn probes(&mut self, node: &Node, file: &File) -> Probes {
        let schema::Probes { requests, feedback, sockets, fences, ref driver, ref cuda } =
            file.probes;
        let driver = match driver {
            Switch::On(Brief(driver)) => Some(self.driver(node.at("driver"), driver)),
            Switch::Off => None,
        };
        if feedback && !requests && driver.is_none() {
            let help = "set `requests: true` or `driver: true` as well".to_owned();
            self.wrong(node.at("feedback"), "needs a probe to feed on", Some(help));
        }
        let schema::CudaProbe { enabled, launches, single_step } = cuda.0;
        let cuda = enabled.then_some(CudaProbe { launches, single_step });
        Probes { requests, feedback, sockets, driver, fences, cuda }
    }

    fn driver(&mut self, node: &Node, driver: &schema::Driver) -> Driver {
        let at = node.at("devices");
        if driver.devices.len() > DEVICES_MOST {
            self.wrong(at, format!("has more than {DEVICES_MOST} entries"), None);
        }
        let mut devices: Vec<PathBuf> = Vec::new();
        for (item, path) in
            self.document.items(at, driver.devices.len()).into_iter().zip(&driver.devices)
        {
            let path = PathBuf::from(path);
            if !path.is_absolute() {
                self.wrong(item, format!("{} is no absolute path", path.display()), None);
            } else if devices.contains(&path) {
                self.wrong(item, format!("{} is there twice", path.display()), None);
            } else {
                devices.push(path);
            }
        }
        Driver { devices, stuck_after: driver.stuck_after.0 }
    }
}
