//! Probes that targets define themselves: what the programs are told of their places (map
//! `USDT_SITES`).

use aya::{Ebpf, maps::Array};
use memleak_common::{
    probe::cookie,
    usdt::{MAX_SITES, SiteRow},
};

use super::{
    access::array_mut,
    error::{BpfError, map_error},
};
use crate::probe::plan::AttachPoint;

const MAP: &str = "USDT_SITES";

/// The places that were told, each once: as many as they have different arguments.
#[derive(Default)]
pub(super) struct UsdtSites(Vec<SiteRow>);

impl UsdtSites {
    /// The attach cookie of a point in the process with this slot.
    pub(super) fn cookie(
        &mut self,
        ebpf: &mut Ebpf,
        point: &AttachPoint,
        slot: u32,
    ) -> Result<u64, BpfError> {
        let Some(usdt) = &point.usdt else { return Ok(cookie(point.row, slot)) };
        let site = SiteRow { row: point.row, reserved: 0, arguments: usdt.arguments };
        let known = self.0.iter().position(|other| *other == site);
        let index = match known {
            Some(index) => index as u32,
            None => {
                let index = self.0.len() as u32;
                if index >= MAX_SITES {
                    return Err(BpfError::Map { map: MAP, reason: format!("more than {MAX_SITES} places") });
                }
                let mut sites: Array<_, SiteRow> = array_mut(ebpf, MAP)?;
                sites.set(index, site, 0).map_err(|error| map_error(MAP, &error))?;
                self.0.push(site);
                index
            }
        };
        Ok(cookie(index, slot))
    }
}
