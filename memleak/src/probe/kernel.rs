//! Kernel mode: the kernel's allocators as tables, and what of them the running kernel has.
//!
//! Tracepoints come first, since they cost least and need no kprobes; functions are for what has
//! none. Arguments are found by their names in the kernel's type information: their places have
//! moved between versions. Sources: include/trace/events/kmem.h, include/trace/events/percpu.h,
//! include/linux/slab.h, include/linux/vmalloc.h.

use std::ops::Range;

use memleak_common::{
    kernel::{
        CODE_RANGES, CodeRange, DeferredFrees, KernelRow, KernelSettings, MAX_KERNEL_ROWS, TRACEPOINTS,
        Tracepoint, TracepointArgs, role,
    },
    probe::{NO_ARG, Resource},
};

use crate::proc::btf::Btf;

/// A tracepoint. The program of the same place serves it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TracepointRow {
    /// Which.
    pub tracepoint: Tracepoint,
    /// Its program's name in the BPF object.
    pub program: &'static str,
    /// The program that runs after it, for when the kernel skips it.
    pub twin: Option<&'static str>,
    /// Its own name.
    pub name: &'static str,
    /// What it is about.
    pub resource: Resource,
    /// Names of its arguments, the first that exists: handle.
    handle: &'static [&'static str],
    /// Bytes, or order.
    size: &'static [&'static str],
    /// Cache.
    cache: &'static [&'static str],
    /// It exists in some kernels only, and nothing is missing without it.
    is_optional: bool,
}

const fn tracepoint(
    tracepoint: Tracepoint,
    name: &'static str,
    resource: Resource,
    handle: &'static [&'static str],
    size: &'static [&'static str],
) -> TracepointRow {
    TracepointRow {
        tracepoint,
        program: name,
        twin: None,
        name,
        resource,
        handle,
        size,
        cache: &[],
        is_optional: false,
    }
}

/// All of them; what releases comes first, so that nothing that was seen acquired can be missed at
/// its release.
pub(crate) const TRACEPOINT_TABLE: &[TracepointRow] = &[
    TracepointRow {
        twin: Some("kfree_twin"),
        ..tracepoint(Tracepoint::Kfree, "kfree", Resource::Slab, &["ptr"], &[])
    },
    TracepointRow {
        twin: Some("kmem_cache_free_twin"),
        ..tracepoint(Tracepoint::CacheFree, "kmem_cache_free", Resource::Slab, &["ptr"], &[])
    },
    TracepointRow {
        twin: Some("mm_page_free_twin"),
        ..tracepoint(Tracepoint::PageFree, "mm_page_free", Resource::Pages, &["page"], &[])
    },
    TracepointRow {
        program: "percpu_free",
        ..tracepoint(Tracepoint::PercpuFree, "percpu_free_percpu", Resource::Percpu, &["ptr"], &[])
    },
    tracepoint(Tracepoint::Kmalloc, "kmalloc", Resource::Slab, &["ptr"], &["bytes_alloc"]),
    TracepointRow {
        is_optional: true,
        ..tracepoint(Tracepoint::KmallocNode, "kmalloc_node", Resource::Slab, &["ptr"], &["bytes_alloc"])
    },
    // Before 5.19 there is no cache, but the size; from 6.1 on the cache alone.
    TracepointRow {
        cache: &["s"],
        ..tracepoint(Tracepoint::CacheAlloc, "kmem_cache_alloc", Resource::Slab, &["ptr"], &["bytes_alloc"])
    },
    TracepointRow {
        cache: &["s"],
        is_optional: true,
        ..tracepoint(
            Tracepoint::CacheAllocNode,
            "kmem_cache_alloc_node",
            Resource::Slab,
            &["ptr"],
            &["bytes_alloc"],
        )
    },
    tracepoint(Tracepoint::PageAlloc, "mm_page_alloc", Resource::Pages, &["page"], &["order"]),
    TracepointRow {
        program: "percpu_alloc",
        ..tracepoint(
            Tracepoint::PercpuAlloc,
            "percpu_alloc_percpu",
            Resource::Percpu,
            &["ptr"],
            &["bytes_alloc", "size"],
        )
    },
];

/// A function, for kprobes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FunctionRow {
    /// Its name, without the suffix `_noprof` that allocators carry since 6.10.
    pub name: &'static str,
    /// What it is about.
    pub resource: Resource,
    /// One of [`role`].
    pub role: u8,
    /// Names of the arguments: the handle that it takes back, or the array.
    handle: &'static [&'static str],
    /// Number of entries of the array.
    count: &'static [&'static str],
    /// A tracepoint reports the same: probed only if kprobes are asked for.
    pub has_tracepoint: bool,
}

const SIZE: &[&str] = &["size"];
const CACHE: &[&str] = &["s", "cachep"];
const GFP: &[&str] = &["flags", "gfp", "gfpflags", "gfp_flags", "gfp_mask"];

const fn acquire(name: &'static str) -> FunctionRow {
    let role = role::ACQUIRE;
    FunctionRow { name, resource: Resource::Slab, role, handle: &[], count: &[], has_tracepoint: true }
}

const fn release(name: &'static str, handle: &'static [&'static str]) -> FunctionRow {
    FunctionRow { role: role::RELEASE, handle, ..acquire(name) }
}

/// All of them; what releases comes first.
pub(crate) const FUNCTION_TABLE: &[FunctionRow] = &[
    release("kfree", &["object", "objp", "x"]),
    release("kmem_cache_free", &["x", "objp"]),
    // kfree_rcu ends here, and its objects may be freed in bulk.
    FunctionRow {
        role: role::RELEASE_ARRAY,
        count: &["size", "nr"],
        has_tracepoint: false,
        ..release("kmem_cache_free_bulk", &["p"])
    },
    FunctionRow { has_tracepoint: false, ..release("kvfree_call_rcu", &["ptr"]) },
    FunctionRow { resource: Resource::Vmalloc, has_tracepoint: false, ..release("vfree", &["addr"]) },
    acquire("__kmalloc"),
    acquire("__kmalloc_node"),
    acquire("__kmalloc_track_caller"),
    acquire("__kmalloc_node_track_caller"),
    acquire("__kmalloc_large"),
    acquire("__kmalloc_large_node"),
    acquire("kmalloc_large"),
    acquire("kmalloc_large_node"),
    acquire("kmalloc_order"),
    acquire("kmalloc_order_trace"),
    acquire("__kmalloc_cache"),
    acquire("__kmalloc_cache_node"),
    acquire("kmalloc_trace"),
    acquire("kmalloc_node_trace"),
    acquire("kmem_cache_alloc"),
    acquire("kmem_cache_alloc_trace"),
    acquire("kmem_cache_alloc_lru"),
    acquire("kmem_cache_alloc_node"),
    acquire("kmem_cache_alloc_node_trace"),
    FunctionRow {
        role: role::ACQUIRE_ARRAY,
        handle: &["p"],
        count: &["size", "nr"],
        has_tracepoint: false,
        ..acquire("kmem_cache_alloc_bulk")
    },
    FunctionRow { resource: Resource::Vmalloc, has_tracepoint: false, ..acquire("__vmalloc_node_range") },
];

/// Allocators whose pages are counted as what they make of them: functions, and the resource.
const PAGE_USERS: &[(&str, Resource)] = &[
    ("___slab_alloc", Resource::Slab),
    ("allocate_slab", Resource::Slab),
    ("new_slab", Resource::Slab),
    ("___kmalloc_large_node", Resource::Slab),
    ("__kmalloc_large_node", Resource::Slab),
    ("__vmalloc_node_range", Resource::Vmalloc),
    ("vm_area_alloc_pages", Resource::Vmalloc),
    ("pcpu_alloc_pages", Resource::Percpu),
    ("pcpu_populate_chunk", Resource::Percpu),
];

/// How the names of twins end ([`TracepointRow::twin`]).
pub(crate) const TWIN: &str = "_twin";

/// The tracepoint of the program `work_start`.
pub(crate) const WORK_START: &str = "workqueue_execute_start";

/// `--kernel-probes`: by what the kernel's allocators are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum KernelProbes {
    /// Raw tracepoints if the kernel has them, kprobes for the rest.
    Auto,
    /// Raw tracepoints alone.
    Tracepoint,
    /// Kprobes, and raw tracepoints for pages, which have no function of their own.
    Kprobe,
}

/// What the running kernel is asked.
pub(crate) trait KernelFacts {
    /// The kernel's own name of a function (it may have a suffix) and its address.
    fn function(&self, name: &str) -> Option<(String, u64)>;
    /// Code of these functions.
    fn code(&self, names: &[&str]) -> Vec<Range<u64>>;
    /// The kernel takes kprobes.
    fn has_kprobes(&self) -> bool;
}

/// A function to probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KernelFunction {
    /// Its name in this kernel.
    pub name: String,
    /// Its address.
    pub address: u64,
    /// What the programs are told.
    pub row: KernelRow,
}

/// What to attach.
#[derive(Clone, Debug)]
pub(crate) struct KernelPlan {
    /// Positions and places; the filters are not set.
    pub settings: KernelSettings,
    /// Tracepoints, in the order in which to attach them.
    pub tracepoints: Vec<&'static TracepointRow>,
    /// Functions, likewise.
    pub functions: Vec<KernelFunction>,
    /// The work of `kfree_rcu` is watched (`settings.deferred`).
    pub watches_work: bool,
    /// What is not seen on this kernel, and why: a line each.
    pub unseen: Vec<String>,
}

/// Why kernel mode is not available.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KernelPlanError {
    /// `--kernel-probes kprobe`.
    #[error(
        "cannot trace by kprobes: this kernel was built without them (CONFIG_KPROBES); leave out --kernel-probes, or \
         boot another kernel"
    )]
    NoKprobes,
    /// Neither way finds where memory is acquired.
    #[error(
        "cannot trace the kernel: it has no tracepoint and no function for {0} that this version of memleak knows; \
         please report it with the output of uname -r"
    )]
    NothingFound(&'static str),
}

/// Plans for the running kernel. `percpu`: `-P`.
pub(crate) fn plan(
    btf: &Btf,
    facts: &dyn KernelFacts,
    probes: KernelProbes,
    percpu: bool,
) -> Result<KernelPlan, KernelPlanError> {
    let mut plan = KernelPlan {
        settings: KernelSettings {
            cache_size_offset: btf.member_offset("kmem_cache", "size").unwrap_or(0),
            cache_name_offset: btf.member_offset("kmem_cache", "name").unwrap_or(0),
            ..KernelSettings::EMPTY
        },
        tracepoints: Vec::new(),
        functions: Vec::new(),
        watches_work: false,
        unseen: Vec::new(),
    };
    let by_kprobe = probes == KernelProbes::Kprobe;
    if by_kprobe && !facts.has_kprobes() {
        return Err(KernelPlanError::NoKprobes);
    }
    for row in TRACEPOINT_TABLE {
        let by_function = by_kprobe && row.resource == Resource::Slab;
        if !by_function && (percpu || row.resource != Resource::Percpu) {
            plan_tracepoint(btf, row, &mut plan);
        }
    }
    let slab_by_tracepoint = plan.tracepoints.iter().any(|row| row.tracepoint == Tracepoint::CacheAlloc);
    if probes == KernelProbes::Tracepoint || !facts.has_kprobes() {
        let deferred = deferred_frees(btf, facts);
        plan.watches_work = deferred.is_some();
        plan.settings.deferred = deferred.unwrap_or_default();
        let why = if facts.has_kprobes() { "--kernel-probes" } else { "this kernel has no kprobes" };
        // From 6.18 on some caches keep what kfree_rcu frees to hand it out again (mm/slub.c,
        // sheaves).
        let has_sheaves = btf.member_offset("kmem_cache", "cpu_sheaves").is_some();
        let rcu = match (plan.watches_work, has_sheaves) {
            (false, _) => "kfree_rcu, ",
            (true, true) => "kfree_rcu of maple_node and its like, ",
            (true, false) => "",
        };
        plan.unseen
            .push(format!("vmalloc, and objects that are freed in bulk ({rcu}network buffers): {why}"));
    } else {
        for row in FUNCTION_TABLE {
            if !row.has_tracepoint || !slab_by_tracepoint {
                plan_function(btf, facts, row, &mut plan);
            }
        }
    }
    if !plan.acquires(Resource::Slab) {
        return Err(KernelPlanError::NothingFound("slab objects"));
    }
    plan.settings.page_users = page_users(facts, &plan);
    Ok(plan)
}

impl KernelPlan {
    /// Something tells when this is acquired.
    fn acquires(&self, resource: Resource) -> bool {
        self.tracepoints.iter().any(|row| row.resource == resource && !row.size.is_empty())
            || self.functions.iter().any(|function| {
                function.row.resource == resource.number() && function.row.role == role::ACQUIRE
            })
    }
}

/// Position of the first of `names` among `arguments`.
fn position(arguments: &[String], names: &[&str]) -> u8 {
    names
        .iter()
        .find_map(|name| arguments.iter().position(|argument| argument == name))
        .and_then(|position| u8::try_from(position).ok())
        .unwrap_or(NO_ARG)
}

fn plan_tracepoint(btf: &Btf, row: &'static TracepointRow, plan: &mut KernelPlan) {
    let Some(arguments) = btf.tracepoint_arguments(row.name) else {
        if !row.is_optional {
            plan.unseen.push(format!("{}: this kernel has no such tracepoint", row.name));
        }
        return;
    };
    let args = TracepointArgs {
        handle: position(&arguments, row.handle),
        size: position(&arguments, row.size),
        cache: position(&arguments, row.cache),
        gfp: position(&arguments, GFP),
        call_site: position(&arguments, &["call_site"]),
        reserved: [0; 3],
    };
    let knows_size = row.size.is_empty() || args.size != NO_ARG || args.cache != NO_ARG;
    if args.handle == NO_ARG || !knows_size {
        plan.unseen.push(format!("{}: its arguments are not known ({})", row.name, arguments.join(", ")));
        return;
    }
    if let Some(place) = plan.settings.tracepoints.get_mut(row.tracepoint as usize) {
        *place = args;
        plan.tracepoints.push(row);
    }
}

fn plan_function(btf: &Btf, facts: &dyn KernelFacts, row: &FunctionRow, plan: &mut KernelPlan) {
    let Some((name, address)) = facts.function(row.name) else { return };
    let Some(arguments) = btf.function_parameters(&name) else { return };
    let is_array = matches!(row.role, role::ACQUIRE_ARRAY | role::RELEASE_ARRAY);
    let acquires = matches!(row.role, role::ACQUIRE | role::ACQUIRE_ARRAY);
    let only = |wanted: bool, names| if wanted { position(&arguments, names) } else { NO_ARG };
    let kernel_row = KernelRow {
        resource: row.resource.number(),
        scratch: (TRACEPOINTS + plan.functions.len()) as u32,
        role: row.role,
        handle_arg: position(&arguments, row.handle),
        count_arg: position(&arguments, row.count),
        size_arg: only(acquires && !is_array, SIZE),
        cache_arg: only(acquires && row.resource == Resource::Slab, CACHE),
        gfp_arg: only(acquires, GFP),
        reserved: [0; 2],
    };
    let is_known = if row.role == role::ACQUIRE {
        kernel_row.size_arg != NO_ARG || kernel_row.cache_arg != NO_ARG
    } else {
        kernel_row.handle_arg != NO_ARG && (!is_array || kernel_row.count_arg != NO_ARG)
    };
    if is_known && plan.functions.len() < MAX_KERNEL_ROWS as usize {
        plan.functions.push(KernelFunction { name, address, row: kernel_row });
    }
}

/// Where `kfree_rcu` keeps what it will free: two lists of blocks, which have other names and links
/// before Linux 6.3.
fn deferred_frees(btf: &Btf, facts: &dyn KernelFacts) -> Option<DeferredFrees> {
    const BLOCK: &str = "kvfree_rcu_bulk_data";
    const POINTER: u32 = 8;
    btf.tracepoint_arguments(WORK_START)?;
    let (waiting, going, next, list_size) = match btf.member_offset(BLOCK, "list") {
        Some(list) => ("bulk_head", "bulk_head_free", list, 2 * POINTER), // struct list_head
        None => ("bkvhead", "bkvhead_free", btf.member_offset(BLOCK, "next")?, POINTER),
    };
    let way = |structure, work, lists| {
        let (work, lists) = (btf.member_offset(structure, work)?, btf.member_offset(structure, lists)?);
        Some(i64::from(lists) - i64::from(work))
    };
    Some(DeferredFrees {
        functions: [facts.function("kfree_rcu_monitor")?.1, facts.function("kfree_rcu_work")?.1],
        lists: [
            way("kfree_rcu_cpu", "monitor_work", waiting)?,
            way("kfree_rcu_cpu_work", "rcu_work", going)?,
        ],
        function_offset: btf.member_offset("work_struct", "func")?,
        count_offset: btf.member_offset(BLOCK, "nr_records")?,
        records_offset: btf.member_offset(BLOCK, "records")?,
        next_offset: next,
        list_size,
        reserved: 0,
    })
}

/// Code of the allocators that are traced and take pages.
fn page_users(facts: &dyn KernelFacts, plan: &KernelPlan) -> [CodeRange; CODE_RANGES] {
    let mut ranges = [CodeRange::default(); CODE_RANGES];
    let names: Vec<&str> =
        PAGE_USERS.iter().filter(|(_, resource)| plan.acquires(*resource)).map(|(name, _)| *name).collect();
    for (place, code) in ranges.iter_mut().zip(facts.code(&names)) {
        *place = CodeRange { start: code.start, end: code.end };
    }
    ranges
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, sync::LazyLock};

    use super::*;

    /// A kernel with all functions of its type information, a page apart.
    struct Fake {
        btf: &'static Btf,
        has_kprobes: bool,
    }

    static BTF: LazyLock<Btf> = LazyLock::new(|| Btf::kernel().expect("the kernel has type information"));

    impl KernelFacts for Fake {
        fn function(&self, name: &str) -> Option<(String, u64)> {
            [name.to_owned(), format!("{name}_noprof")]
                .into_iter()
                .find(|name| self.btf.has_function(name))
                .map(|name| (name, 0xffff_ffff_8100_0000))
        }

        fn code(&self, names: &[&str]) -> Vec<Range<u64>> {
            (1..=names.len() as u64).map(|at| at * 4096..at * 4096 + 100).collect()
        }

        fn has_kprobes(&self) -> bool {
            self.has_kprobes
        }
    }

    fn running(has_kprobes: bool) -> Fake {
        Fake { btf: &BTF, has_kprobes }
    }

    #[test]
    fn every_tracepoint_has_a_place_and_a_program_of_its_own() {
        let places: HashSet<u32> = TRACEPOINT_TABLE.iter().map(|row| row.tracepoint as u32).collect();
        assert_eq!(places, (0..TRACEPOINTS as u32).collect());
        let programs: HashSet<&str> =
            TRACEPOINT_TABLE.iter().flat_map(|row| std::iter::once(row.program).chain(row.twin)).collect();
        let twins = TRACEPOINT_TABLE.iter().filter(|row| row.twin.is_some()).count();
        assert_eq!(programs.len(), TRACEPOINTS + twins);
        assert!(TRACEPOINT_TABLE.iter().filter_map(|row| row.twin).all(|twin| twin.ends_with(TWIN)));
    }

    #[test]
    fn releases_are_attached_before_acquires() {
        let acquires = |row: &TracepointRow| !row.size.is_empty() || !row.cache.is_empty();
        assert!(TRACEPOINT_TABLE.is_sorted_by_key(acquires));
        let acquires = |row: &FunctionRow| matches!(row.role, role::ACQUIRE | role::ACQUIRE_ARRAY);
        assert!(FUNCTION_TABLE.is_sorted_by_key(acquires));
    }

    /// The arguments' names, as bpftool and the kernel's headers have them, at the places that the
    /// plan gives.
    #[test]
    fn arguments_are_found_by_name() {
        let fake = running(false);
        let plan = plan(fake.btf, &fake, KernelProbes::Auto, true).expect("a plan");
        for row in &plan.tracepoints {
            let names = fake.btf.tracepoint_arguments(row.name).expect("its arguments");
            let args = plan.settings.tracepoints[row.tracepoint as usize];
            let name = |position: u8| names.get(position as usize).map(String::as_str);
            assert!(["ptr", "page"].contains(&name(args.handle).expect("a handle")), "{}", row.name);
            assert!([None, Some("bytes_alloc"), Some("order")].contains(&name(args.size)), "{}", row.name);
            assert!([None, Some("s")].contains(&name(args.cache)), "{}", row.name);
        }
        let has = |tracepoint| plan.tracepoints.iter().any(|row| row.tracepoint == tracepoint);
        assert!(has(Tracepoint::Kmalloc) && has(Tracepoint::PageFree) && has(Tracepoint::PercpuAlloc));
    }

    #[test]
    fn what_cannot_be_seen_is_said() {
        let fake = running(false);
        let without = plan(fake.btf, &fake, KernelProbes::Auto, false).expect("a plan");
        assert!(without.functions.is_empty());
        assert!(without.unseen.iter().any(|line| line.contains("vmalloc") && line.contains("no kprobes")));
        assert!(without.tracepoints.iter().all(|row| row.resource != Resource::Percpu), "-P was not given");
        let error = plan(fake.btf, &fake, KernelProbes::Kprobe, false).expect_err("no kprobes");
        assert_eq!(error, KernelPlanError::NoKprobes);
    }

    #[test]
    fn functions_are_for_what_has_no_tracepoint() {
        let fake = running(true);
        let auto = plan(fake.btf, &fake, KernelProbes::Auto, false).expect("a plan");
        assert!(auto.unseen.is_empty(), "{:?}", auto.unseen);
        let names = |plan: &KernelPlan| -> HashSet<String> {
            plan.functions.iter().map(|f| f.name.trim_end_matches("_noprof").to_owned()).collect()
        };
        let expected = ["vfree", "__vmalloc_node_range", "kmem_cache_free_bulk", "kmem_cache_alloc_bulk"];
        assert!(expected.iter().all(|name| names(&auto).contains(*name)), "{:?}", names(&auto));
        assert!(!names(&auto).contains("kfree"), "it has a tracepoint");
        let kprobe = plan(fake.btf, &fake, KernelProbes::Kprobe, false).expect("a plan");
        assert!(["kfree", "kmem_cache_alloc", "__kmalloc"].iter().all(|name| names(&kprobe).contains(*name)));
        assert!(kprobe.tracepoints.iter().all(|row| row.resource == Resource::Pages));
        let scratch: HashSet<u32> = kprobe.functions.iter().map(|function| function.row.scratch).collect();
        assert_eq!(scratch.len(), kprobe.functions.len(), "scratch space is one program's");
    }

    #[test]
    fn pages_of_allocators_that_are_not_traced_count_as_pages() {
        let fake = running(false);
        let ranges = |percpu| {
            let plan = plan(fake.btf, &fake, KernelProbes::Tracepoint, percpu).expect("a plan");
            plan.settings.page_users.iter().filter(|range| range.end != 0).count()
        };
        let of = |resource| PAGE_USERS.iter().filter(|(_, user)| *user == resource).count();
        assert_eq!(ranges(false), of(Resource::Slab));
        assert_eq!(ranges(true), of(Resource::Slab) + of(Resource::Percpu));
    }
}
