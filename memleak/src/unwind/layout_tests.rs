use memleak_common::unwind::{Kind, Row};

use super::*;
use crate::elf::Segment;
use crate::unwind::{ExecSegments, Machine, UnwindTable, eh_frame::BuildStats};

/// A table of `rows` rows, one for each page.
fn table(rows: u32) -> Arc<SharedTable> {
    let segments = vec![Segment {
        file_offset: 0x1000,
        vaddr: 0x40_1000,
        len: 0x10_0000,
        memory_len: 0x10_0000,
        executable: true,
    }];
    let table = UnwindTable {
        machine: Machine::X86_64,
        build_id: None,
        segments: ExecSegments { text_base: 0x40_1000, segments },
        rows: (0..rows).map(|row| Row::new(row * 256, Kind::SP, i64::from(row) * 8, 0).unwrap()).collect(),
        pages: (0..rows).map(|row| memleak_common::unwind::page_word(row, row + 1)).collect(),
        stats: BuildStats::default(),
    };
    Arc::new(table.into())
}

fn mapped(start: u64, table: &Arc<SharedTable>) -> MappedObject {
    MappedObject { start, end: start + 0x10_0000, file_offset: 0x1000, table: Arc::clone(table) }
}

/// What a list leads to: for each mapping its bias, and the rows that it names.
fn reached(arrays: &Arrays, list: MappingList) -> Vec<(u64, u64, Vec<u64>)> {
    (list.first()..list.first() + list.count())
        .map(|index| {
            let mapping = arrays.mapping(index).unwrap();
            let rows = (mapping.rows..mapping.pages).map(|word| arrays.word(word).unwrap()).collect();
            (mapping.start, mapping.bias, rows)
        })
        .collect()
}

#[test]
fn extents_are_reused_and_joined() {
    let mut extents = Extents::new(100);
    let parts: Vec<_> = (0..10).map(|_| extents.allocate(10).unwrap()).collect();
    assert_eq!(extents.allocate(1), None);
    for part in [3, 5, 4, 9, 0] {
        extents.release(parts[part]);
    }
    assert_eq!(extents.free, BTreeMap::from([(0, 10), (30, 30), (90, 10)]));
    assert_eq!(extents.allocate(30), Some(Extent { start: 30, len: 30 }));
    assert_eq!(extents.allocate(11), None);
    for part in [1, 2, 3, 4, 5, 6, 7, 8] {
        extents.release(parts[part]);
    }
    assert_eq!(extents.free, BTreeMap::from([(0, 100)]));
    assert_eq!(Extents::new(0).allocate(1), None);
}

#[test]
fn processes_share_a_table_and_its_place_outlives_the_first() {
    let (mut layout, mut arrays) = (Layout::new(1000, 16), Arrays::default());
    let (shared, own) = (table(100), table(30));
    let rows = |table: &SharedTable| {
        let words = table.take_words().unwrap();
        table.put_words(words.clone());
        words[..table.rows() as usize].to_vec()
    };
    let (shared_rows, own_rows) = (rows(&shared), rows(&own));
    layout
        .set_process(1, &[mapped(0x9_0000, &own), mapped(0x1_0000, &shared)], Shortage::Fail, &mut arrays)
        .unwrap();
    layout.set_process(2, &[mapped(0x5_0000, &shared)], Shortage::Fail, &mut arrays).unwrap();
    assert_eq!(layout.free_words(), 1000 - 260);
    let shared_at = |start| (start, start, shared_rows.clone());
    assert_eq!(reached(&arrays, arrays.list(1)), [shared_at(0x1_0000), (0x9_0000, 0x9_0000, own_rows)]);
    layout.remove_process(1, &mut arrays).unwrap();
    layout.reclaim(&arrays).unwrap();
    assert_eq!(layout.free_words(), 1000 - 260, "a walk that began before may be running");
    layout.reclaim(&arrays).unwrap();
    assert_eq!(layout.free_words(), 1000 - 200);
    assert_eq!(arrays.list(1).count(), 0);
    assert_eq!(reached(&arrays, arrays.list(2)), [shared_at(0x5_0000)]);
}

#[test]
fn an_old_list_reads_right_until_it_is_reclaimed() {
    let (mut layout, mut arrays) = (Layout::new(2000, 16), Arrays::default());
    let first = layout.set_process(1, &[mapped(0x1_0000, &table(50))], Shortage::Fail, &mut arrays).unwrap();
    let before = reached(&arrays, first);
    layout.set_process(1, &[mapped(0x1_0000, &table(60))], Shortage::Fail, &mut arrays).unwrap();
    layout.reclaim(&arrays).unwrap();
    layout.set_process(1, &[mapped(0x1_0000, &table(70))], Shortage::Fail, &mut arrays).unwrap();
    assert_eq!(reached(&arrays, first), before);
}

#[test]
fn a_plugin_that_comes_and_goes_leaves_nothing() {
    let (mut layout, mut arrays) = (Layout::new(1000, 16), Arrays::default());
    let main = mapped(0x1_0000, &table(100));
    layout.set_process(1, std::slice::from_ref(&main), Shortage::Fail, &mut arrays).unwrap();
    let free = layout.free_words();
    for _ in 0..1000 {
        let plugin = mapped(0x90_0000, &table(40));
        layout.set_process(1, &[main.clone(), plugin], Shortage::Fail, &mut arrays).unwrap();
        layout.reclaim(&arrays).unwrap();
        layout.set_process(1, std::slice::from_ref(&main), Shortage::Fail, &mut arrays).unwrap();
        layout.reclaim(&arrays).unwrap();
    }
    layout.reclaim(&arrays).unwrap();
    layout.reclaim(&arrays).unwrap();
    assert_eq!((layout.free_words(), layout.tables()), (free, 1));
}

#[test]
fn a_table_without_room_keeps_no_other_one_out() {
    let (mut layout, mut arrays) = (Layout::new(250, 8), Arrays::default());
    let (main, large, small) = (table(90), table(300), table(30));
    let objects = [mapped(0x1_0000, &main), mapped(0x20_0000, &large), mapped(0x40_0000, &small)];
    let error = layout.set_process(1, &objects, Shortage::Fail, &mut arrays);
    assert_eq!(error, Err(LayoutError::Words { words: 600 }));
    assert_eq!(layout.retired_words(), 180);
    let list = layout.set_process(1, &objects, Shortage::LeaveOut, &mut arrays).unwrap();
    assert_eq!(layout.retired_words(), 0);
    let rows: Vec<_> = reached(&arrays, list).iter().map(|(start, _, rows)| (*start, rows.len())).collect();
    assert_eq!(rows, [(0x1_0000, 90), (0x20_0000, 0), (0x40_0000, 30)]);
    let left_out = arrays.mapping(list.first() + 1).unwrap();
    assert_eq!((left_out.end, left_out.page_count), (0x30_0000, 0));
    layout.remove_process(1, &mut arrays).unwrap();
    layout.reclaim(&arrays).unwrap();
    layout.reclaim(&arrays).unwrap();
    assert_eq!((layout.free_words(), layout.retired_words()), (250, 0));
}

#[test]
fn too_many_mappings_leave_out_those_that_repeat_a_table() {
    let (mut layout, mut arrays) = (Layout::new(250, 20_000), Arrays::default());
    let (library, last) = (table(20), table(30));
    let mut objects: Vec<_> = (0..u64::from(MAX_MAPPINGS) + 9).map(|at| mapped(at << 24, &library)).collect();
    objects.push(mapped(1 << 40, &last));
    let count = objects.len();
    let error = layout.set_process(1, &objects, Shortage::Fail, &mut arrays);
    assert_eq!(error, Err(LayoutError::Mappings { count }));
    let list = layout.set_process(1, &objects, Shortage::LeaveOut, &mut arrays).unwrap();
    assert_eq!(list.count(), MAX_MAPPINGS);
    let at_end = arrays.mapping(list.first() + list.count() - 1).unwrap();
    assert_eq!((at_end.start, at_end.page_count), (1 << 40, 30));
    let starts: Vec<_> =
        (0..list.count()).map(|at| arrays.mapping(list.first() + at).unwrap().start).collect();
    assert!(starts.is_sorted());
}

#[test]
fn without_room_the_old_list_stays() {
    let (mut layout, mut arrays) = (Layout::new(250, 4), Arrays::default());
    let old = layout.set_process(1, &[mapped(0x1_0000, &table(100))], Shortage::Fail, &mut arrays).unwrap();
    let before = reached(&arrays, old);
    let error =
        layout.set_process(1, &[mapped(0, &table(10)), mapped(9, &table(90))], Shortage::Fail, &mut arrays);
    assert_eq!(error, Err(LayoutError::Words { words: 180 }));
    assert_eq!((arrays.list(1), reached(&arrays, old)), (old, before));
    let five: Vec<_> = (0..5).map(|at| mapped(at << 24, &table(1))).collect();
    assert_eq!(
        layout.set_process(1, &five, Shortage::Fail, &mut arrays),
        Err(LayoutError::Mappings { count: 5 })
    );
    layout.reclaim(&arrays).unwrap();
    layout.reclaim(&arrays).unwrap();
    assert_eq!((layout.free_words(), layout.tables()), (50, 1));
}

#[test]
fn words_are_in_one_place_and_survive_the_way_there_and_back() {
    let (mut layout, mut arrays) = (Layout::new(1000, 16), Arrays::default());
    let (plugin, other) = (table(40), table(30));
    let words = plugin.take_words().unwrap();
    plugin.put_words(words.clone());
    let first = layout.set_process(1, &[mapped(0x1_0000, &plugin)], Shortage::Fail, &mut arrays).unwrap();
    let before = reached(&arrays, first);
    assert_eq!(plugin.take_words(), None, "they are in the arrays");

    // It goes and comes back before its place is free: nothing is written.
    layout.set_process(1, &[mapped(0x5_0000, &other)], Shortage::Fail, &mut arrays).unwrap();
    let again = layout.set_process(1, &[mapped(0x1_0000, &plugin)], Shortage::Fail, &mut arrays).unwrap();
    assert_eq!(reached(&arrays, again), before);
    layout.set_process(1, &[mapped(0x5_0000, &other)], Shortage::Fail, &mut arrays).unwrap();
    layout.reclaim(&arrays).unwrap();
    let again = layout.set_process(1, &[mapped(0x1_0000, &plugin)], Shortage::Fail, &mut arrays).unwrap();
    assert_eq!(reached(&arrays, again), before);

    // It goes for good: its words come back, and another's take the place.
    layout.remove_process(1, &mut arrays).unwrap();
    layout.reclaim(&arrays).unwrap();
    layout.reclaim(&arrays).unwrap();
    assert_eq!((layout.free_words(), layout.tables()), (1000, 0));
    layout.set_process(2, &[mapped(0x5_0000, &table(90))], Shortage::Fail, &mut arrays).unwrap();
    assert_eq!(plugin.take_words(), Some(words));
}

#[test]
fn a_table_of_another_layout_is_refused() {
    let (mut layout, mut arrays) = (Layout::new(1000, 16), Arrays::default());
    let shared = table(40);
    layout.set_process(1, &[mapped(0x1_0000, &shared)], Shortage::Fail, &mut arrays).unwrap();
    let (mut other, mut others) = (Layout::new(1000, 16), Arrays::default());
    let refused = other.set_process(1, &[mapped(0x1_0000, &shared)], Shortage::Fail, &mut others);
    assert_eq!(refused, Err(LayoutError::Elsewhere));
    assert_eq!(other.free_words(), 1000);
}

/// Arrays whose reads or writes of words fail.
struct Failing<'a> {
    arrays: &'a mut Arrays,
    reads: bool,
}

impl Store for Failing<'_> {
    type Error = &'static str;

    fn write_words(&mut self, index: u32, words: &[u64]) -> Result<(), Self::Error> {
        if !self.reads {
            return Err("no writing");
        }
        self.arrays.write_words(index, words).map_err(|error| match error {})
    }

    fn read_words(&self, _index: u32, _count: u32) -> Result<Vec<u64>, Self::Error> {
        Err("no reading")
    }

    fn write_mappings(&mut self, index: u32, mappings: &[Mapping]) -> Result<(), Self::Error> {
        self.arrays.write_mappings(index, mappings).map_err(|error| match error {})
    }

    fn publish(&mut self, pid: u32, list: MappingList) -> Result<(), Self::Error> {
        self.arrays.publish(pid, list).map_err(|error| match error {})
    }
}

#[test]
fn a_store_that_fails_loses_no_words() {
    let (mut layout, mut arrays) = (Layout::new(1000, 16), Arrays::default());
    let plugin = table(40);
    let words = plugin.take_words().unwrap();
    plugin.put_words(words.clone());

    let mut failing = Failing { arrays: &mut arrays, reads: false };
    let refused = layout.set_process(1, &[mapped(0x1_0000, &plugin)], Shortage::Fail, &mut failing);
    assert_eq!(refused, Err(LayoutError::Store("no writing")));
    assert_eq!(layout.free_words(), 1000);
    assert_eq!(plugin.take_words().as_ref(), Some(&words), "not written, so still here");
    plugin.put_words(words.clone());

    layout.set_process(1, &[mapped(0x1_0000, &plugin)], Shortage::Fail, &mut arrays).unwrap();
    layout.remove_process(1, &mut arrays).unwrap();
    let failing = Failing { arrays: &mut arrays, reads: true };
    layout.reclaim(&failing).unwrap();
    assert_eq!(layout.reclaim(&failing), Err("no reading"));
    assert_eq!(layout.free_words(), 920, "not read back, so they keep their place");
    layout.reclaim(&arrays).unwrap();
    layout.reclaim(&arrays).unwrap();
    assert_eq!((plugin.take_words(), layout.free_words()), (Some(words), 1000));
}
