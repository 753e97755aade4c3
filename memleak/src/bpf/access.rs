//! Maps and programs of the loaded object, by name.

use std::os::fd::{AsFd as _, BorrowedFd};

use aya::{
    Ebpf,
    maps::{Array, HashMap as BpfHashMap, Map, MapData, PerCpuArray, RingBuf},
    programs::{Program, ProgramType},
    sys::{BpfHelper, is_helper_supported},
};

use super::error::{BpfError, map_error};

/// The kernel lets programs write to a target's memory: return addresses can be put back when an
/// exception leaves a probed call. It may refuse without being locked down.
pub(crate) fn can_write_to_targets() -> bool {
    is_helper_supported(ProgramType::KProbe, BpfHelper::BPF_FUNC_probe_write_user).unwrap_or(false)
}

/// The descriptor of a hash map.
pub(super) fn fd<'a>(ebpf: &'a Ebpf, name: &'static str) -> Result<BorrowedFd<'a>, BpfError> {
    match ebpf.map(name) {
        Some(Map::HashMap(map)) => Ok(map.fd().as_fd()),
        _ => Err(BpfError::Missing(name)),
    }
}

/// A hash map whose keys are words.
pub(super) fn hash_map<'a, V: aya::Pod>(
    ebpf: &'a Ebpf,
    name: &'static str,
) -> Result<BpfHashMap<&'a MapData, u64, V>, BpfError> {
    let map = ebpf.map(name).ok_or(BpfError::Missing(name))?;
    BpfHashMap::try_from(map).map_err(|error| map_error(name, &error))
}

/// An array, to be written.
pub(super) fn array_mut<'a, V: aya::Pod>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<Array<&'a mut MapData, V>, BpfError> {
    let map = ebpf.map_mut(name).ok_or(BpfError::Missing(name))?;
    Array::try_from(map).map_err(|error| map_error(name, &error))
}

/// An array that each CPU has its own of.
pub(super) fn per_cpu<'a, V: aya::Pod>(
    ebpf: &'a Ebpf,
    name: &'static str,
) -> Result<PerCpuArray<&'a MapData, V>, BpfError> {
    let map = ebpf.map(name).ok_or(BpfError::Missing(name))?;
    PerCpuArray::try_from(map).map_err(|error| map_error(name, &error))
}

/// Takes a ring buffer out of the object, to read it.
pub(super) fn ring(ebpf: &mut Ebpf, name: &'static str) -> Result<RingBuf<MapData>, BpfError> {
    let map = ebpf.take_map(name).ok_or(BpfError::Missing(name))?;
    RingBuf::try_from(map).map_err(|error| map_error(name, &error))
}

/// The program of this name, as the kind it is.
pub(super) fn program<'a, P>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, BpfError>
where
    &'a mut P: TryFrom<&'a mut Program>,
{
    ebpf.program_mut(name).and_then(|program| <&mut P>::try_from(program).ok()).ok_or(BpfError::Missing(name))
}
