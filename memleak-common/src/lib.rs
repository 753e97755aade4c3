//! Types shared by both sides of the kernel boundary: the BPF programs (`memleak-ebpf`) and the
//! tool (`memleak`).
//!
//! Every shared type is `#[repr(C)]`, has no padding and no `bool`, and its size is asserted here,
//! so that the two compilers that build the two sides cannot disagree in silence.
#![no_std]

pub mod allocation;
pub mod clock;
pub mod cut;
pub mod event;
pub mod history;
pub mod kernel;
pub mod mappings;
pub mod probe;
pub mod registers;
pub mod sampling;
pub mod settings;
pub mod stack;
pub mod stats;
pub mod system_call;
pub mod table;
pub mod thread;
pub mod unwind;
pub mod usdt;
pub mod walks;

/// Asserts the sizes that both sides rely on; a type with padding would leak kernel stack bytes and
/// fail the verifier.
macro_rules! assert_sizes {
    ($($type:ty = $size:expr),* $(,)?) => {
        $(const _: () = assert!(size_of::<$type>() == $size && align_of::<$type>() <= 8);)*
    };
}

assert_sizes! {
    allocation::AllocationKey = 16,
    allocation::Allocation = 48,
    clock::Tick = 16,
    cut::Moved = 72,
    event::Event = 48,
    history::StackHistory = 24 + 8 * history::AGES,
    kernel::KernelSettings = 80 + 16 + 16 + 8 + 32 + 16 * kernel::CODE_RANGES + 64,
    kernel::StackWindow = 32 + 8 * kernel::KERNEL_WINDOW,
    kernel::RememberedStack = 32 + 10 * kernel::REMEMBERED_WORDS,
    kernel::DeferredFrees = 56,
    kernel::LastReleased = 8 + 8 * kernel::LAST_RELEASED,
    kernel::TracepointArgs = 8,
    kernel::CodeRange = 16,
    kernel::KernelRow = 16,
    kernel::KernelCall = 48,
    mappings::MappingState = 24,
    probe::ProbeRow = 72,
    registers::RegisterOffsets = 32,
    registers::SavedRegisters = 24 + 8 * (registers::GENERAL_WORDS + registers::VECTOR_WORDS),
    settings::TaskOffsets = 32,
    settings::SegmentOffsets = 32,
    settings::Settings = 152,
    stack::StackRecord = 16 + 8 * stack::MAX_STACK_DEPTH,
    stack::ShortStackRecord = 16 + 8 * stack::SHORT_STACK_DEPTH,
    table::FilterHead = 8,
    table::TableHeader = 24,
    table::KeyHash = 8,
    table::BlockRecord = 64,
    table::BlockSet = 512,
    thread::CallKey = 16,
    thread::OpenCall = 136,
    thread::Owner = 8,
    thread::PendingCall = 120,
    thread::Target = 16,
    thread::ThreadRecord = 24 + 120 * thread::MAX_PENDING + 24 + 120
        + size_of::<stack::StackRecord>() + 56 + size_of::<thread::Unwind>(),
    thread::ThreadPlace = 8 + size_of::<thread::ThreadRecord>(),
    thread::Unwind = 96 + 16 + 8 * thread::STACK_WINDOW + 32 + 4 * thread::RULES,
    thread::Window = 16 + 8 * thread::STACK_WINDOW,
    unwind::KnownRule = 16,
    unwind::Mapping = 40,
    unwind::MappingList = 8,
    unwind::PublishedList = 16,
    unwind::Regs = 32,
    unwind::Row = 8,
    unwind::State = 96,
    usdt::Argument = 16,
    usdt::SiteRow = 8 + 16 * usdt::ARGUMENTS,
    walks::CachedWalk = 80 + 10 * walks::WALK_WORDS,
    walks::WalkStart = 40,
}

#[cfg(feature = "user")]
mod pod {
    macro_rules! pod {
        ($($type:ty),* $(,)?) => {
            $(
                // SAFETY: the type is `repr(C)`, `Copy`, made of integers alone and (by the size
                // assertions above) has no padding: every bit pattern is a value of it.
                unsafe impl aya::Pod for $type {}
            )*
        };
    }
    pod! {
        crate::allocation::AllocationKey,
        crate::allocation::Allocation,
        crate::cut::Moved,
        crate::event::Event,
        crate::history::StackHistory,
        crate::kernel::KernelSettings,
        crate::kernel::KernelRow,
        crate::kernel::KernelCall,
        crate::kernel::RememberedStack,
        crate::mappings::MappingState,
        crate::probe::ProbeRow,
        crate::registers::RegisterOffsets,
        crate::registers::SavedRegisters,
        crate::settings::Settings,
        crate::stack::StackRecord,
        crate::stack::ShortStackRecord,
        crate::table::TableHeader,
        crate::table::BlockSet,
        crate::thread::CallKey,
        crate::thread::OpenCall,
        crate::thread::PendingCall,
        crate::thread::ThreadRecord,
        crate::thread::ThreadPlace,
        crate::thread::Target,
        crate::unwind::Mapping,
        crate::unwind::MappingList,
        crate::unwind::Row,
        crate::unwind::PublishedList,
        crate::usdt::SiteRow,
        crate::walks::CachedWalk,
    }
}
