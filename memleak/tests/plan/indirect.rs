//! Indirect functions, whose code is known once the target has chosen it.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use memleak::{
    arch::returns::SlotFunction,
    probe::plan::{AttachPoint, PlanOptions, SkipReason, plan},
    proc::{maps::read_maps, memory::ProcessMemory},
    target::{
        ifunc::IfuncError,
        object::{Object, SymbolNames},
    },
};

use crate::{
    fixture::{Running, Segments, all_symbols, compile, run},
    objects_of, skip_reasons,
};

/// Functions with a prefix, one of them indirect: a constructor-free arena.
pub(crate) const INDIRECT: &str = "
    static char arena[4096]; static unsigned long used;
    static void *chosen(unsigned long n) { void *p = arena + used; used += n; return p; }
    static void *other(unsigned long n) { (void)n; return 0; }
    static void *(*choose(void))(unsigned long) { return used == 77 ? other : chosen; }
    void *my_malloc(unsigned long n) __attribute__((ifunc(\"choose\")));
    void my_free(void *p) { (void)p; }
    void *my_truth(void) { return (void *)chosen; }";
const USES_INDIRECT: &str = "
    #include <stdio.h>
    void *my_malloc(unsigned long); void my_free(void *); void *my_truth(void);
    int main(void) { my_free(my_malloc(8)); printf(\"%p\\n\", my_truth()); fflush(stdout); getchar(); }";

/// Address in the object of what the program printed.
fn printed_vaddr(program: &Running, object: &Object) -> u64 {
    let printed = u64::from_str_radix(program.ready.trim_start_matches("0x"), 16).unwrap();
    let maps = read_maps(program.pid()).unwrap();
    let mapping = maps.iter().find(|mapping| (mapping.start..mapping.end).contains(&printed)).unwrap();
    Segments::of(&object.path).vaddr_of(printed - mapping.start + mapping.file_offset)
}

fn check_indirect(program: &Path, object_name: &str, directory: Option<&Path>) {
    let running = Running::start(program, directory);
    let options = PlanOptions { symbols_prefix: Some("my_"), ..PlanOptions::default() };
    let objects = objects_of(running.pid(), &options);
    let object = objects.iter().find(|object| object.file_name() == object_name).unwrap();
    let memory = ProcessMemory::open(running.pid()).unwrap();
    let with_memory = plan(&objects, &options, Some(&memory));
    assert!(!with_memory.is_empty());
    let vaddr = printed_vaddr(&running, object);
    let own: Vec<_> =
        with_memory.points.iter().filter(|p| p.object == object.id && p.function == "my_malloc").collect();
    let entry = |point: &AttachPoint| {
        Segments::of(&object.path).vaddr_of(point.file_offset) - u64::from(point.placement.offset)
    };
    assert_eq!(own.iter().map(|point| entry(point)).collect::<Vec<_>>(), [vaddr; 2]);

    let without = plan(&objects, &options, None);
    assert_eq!(skip_reasons(&without, "my_malloc"), [&SkipReason::Ifunc(IfuncError::NoMemory)]);
    assert!(without.is_empty(), "mappings alone are not what -S asked for");
}

#[test]
fn resolves_an_indirect_function_of_a_shared_object() {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let library = compile("gcc", "libplan_indirect.so", INDIRECT, &["-shared", "-fPIC"]);
    for (name, binding) in [("plan_indirect_lazy", "-Wl,-z,lazy"), ("plan_indirect_now", "-Wl,-z,now")] {
        let program = compile("gcc", name, USES_INDIRECT, &[library.to_str().unwrap(), binding]);
        check_indirect(&program, "libplan_indirect.so", Some(directory));
    }
}

#[test]
fn resolves_an_indirect_function_of_a_static_program() {
    for flag in ["-static", "-static-pie"] {
        let name = format!("plan_indirect{flag}");
        let program = compile("gcc", &name, &format!("{INDIRECT}\n{USES_INDIRECT}"), &[flag]);
        check_indirect(&program, &name, None);
    }
}

#[test]
fn says_when_an_indirect_function_is_not_resolved_yet() {
    let library = compile("gcc", "libplan_unresolved.so", INDIRECT, &["-shared", "-fPIC"]);
    let code = "#include <stdio.h>\nvoid *my_malloc(unsigned long);\n\
                int main(int c, char **v) { puts(\"ready\"); fflush(stdout); getchar(); return c > 9 && my_malloc(1); }";
    let arguments = [library.to_str().unwrap(), "-Wl,-z,lazy", "-fno-pie", "-no-pie"];
    let running = Running::start(
        &compile("gcc", "plan_unresolved", code, &arguments),
        Some(Path::new(env!("CARGO_TARGET_TMPDIR"))),
    );
    let options = PlanOptions { symbols_prefix: Some("my_"), ..PlanOptions::default() };
    let memory = ProcessMemory::open(running.pid()).unwrap();
    let plan = plan(&objects_of(running.pid(), &options), &options, Some(&memory));
    assert_eq!(skip_reasons(&plan, "my_malloc"), [&SkipReason::Ifunc(IfuncError::NotResolved)]);
}

/// By the slots of readelf's relocations, and the addresses that nm has.
#[test]
fn functions_are_known_by_their_slots() {
    const CODE: &str = "
        #include <stdlib.h>
        #include <string.h>
        void *slow(unsigned long n) { return memset(malloc(n), 1, n); }
        void *quick(unsigned long n) { return n == 0 ? NULL : slow(n); }
        void *(*const pointer)(unsigned long) = quick;
        void *(*const end_of_none)(unsigned long) = NULL;";
    let library = compile("gcc", "libplan_slots.so", CODE, &["-shared", "-fPIC"]);
    let path = library.to_str().unwrap();
    let (mut expected, relocations) = (BTreeMap::new(), run("readelf", &["-rW", path]));
    for line in relocations.lines() {
        // Offset, info, type, value, name.
        let words: Vec<&str> = line.split_whitespace().collect();
        let name = words.get(4).and_then(|name| name.split('@').next());
        if let (Some(offset), Some(name @ ("slow" | "quick" | "memset"))) = (words.first(), name) {
            expected.insert(u64::from_str_radix(offset, 16).unwrap(), name);
        }
    }
    assert_eq!(expected.len(), 3, "slots for the calls of `slow` and memset, and `pointer`");
    let symbols = all_symbols(&library);
    let vaddr = |name: &str| symbols.iter().find(|symbol| symbol.name == name).unwrap().vaddr;
    let function = |name| match name {
        "memset" => SlotFunction::ReturnsArgument,
        own => SlotFunction::Own(vaddr(own)),
    };
    let expected: HashMap<_, _> = expected.into_iter().map(|(slot, name)| (slot, function(name))).collect();
    let object = Object::open(&library, &SymbolNames::default()).unwrap();
    assert_eq!(object.elf.unwrap().functions_by_slot(), expected);
}
