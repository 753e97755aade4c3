//! Indirect functions (`STT_GNU_IFUNC`): the symbol names a resolver, and the address that it chose
//! is written in the target's relocation slots only.

use super::{
    object::{FunctionSymbol, Object},
    slots::RelocationSlots,
};
use crate::proc::memory::ReadMemory;

/// Why the function behind a resolver is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IfuncError {
    /// There is no process to read from.
    #[error("an indirect function, known only in a running process")]
    NoMemory,
    /// Slots were read; none holds an address within the object's code yet.
    #[error("an indirect function that the target has not resolved yet")]
    NotResolved,
    /// Nothing the target has mapped refers to it.
    #[error("an indirect function that nothing in the target refers to")]
    NoReference,
}

/// Finds the function (address in `object`, before its load bias) that the resolver `symbol` of
/// `object` chose in the process that `memory` reads. `objects` are all that the process has
/// mapped: any of them can hold the slot.
///
/// What a slot holds is believed if it is code of the same object: a slot that was not resolved yet
/// leads to the procedure linkage table of the object that it is in.
pub fn resolve(
    objects: &[Object],
    object: &Object,
    symbol: &FunctionSymbol,
    memory: Option<&dyn ReadMemory>,
) -> Result<u64, IfuncError> {
    let memory = memory.ok_or(IfuncError::NoMemory)?;
    let (Ok(elf), Some(object_bias)) = (&object.elf, object.load_bias) else {
        return Err(IfuncError::NoReference);
    };
    let mut outcome = IfuncError::NoReference;
    for (holder, which) in [(object, RelocationSlots::OfResolver(symbol.vaddr))]
        .into_iter()
        .chain(objects.iter().map(|holder| (holder, RelocationSlots::OfSymbol(&symbol.name))))
    {
        let (Ok(holder_elf), Some(bias)) = (&holder.elf, holder.load_bias) else { continue };
        for slot in holder_elf.slots(which) {
            outcome = IfuncError::NotResolved;
            let Ok(value) = memory.read_u64(bias.wrapping_add(slot.vaddr)) else { continue };
            let vaddr = value.wrapping_sub(object_bias);
            let is_initial = value == slot.initial || value == slot.initial.wrapping_add(bias);
            if !is_initial && vaddr != symbol.vaddr && elf.file_offset_of(vaddr).is_some() {
                return Ok(vaddr);
            }
        }
    }
    Err(outcome)
}
