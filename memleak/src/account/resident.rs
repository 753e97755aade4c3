//! What of a process is in memory, and who has claimed it: each byte is given to one claim, the
//! first that comes.

use std::ops::Range;

/// Bytes in memory that nobody has claimed yet: runs that do not touch, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Resident(Vec<Range<u64>>);

impl Resident {
    /// Of runs in order of address. A mapping that grew while they were read can be there twice:
    /// each byte counts once.
    pub(super) fn new(mut runs: Vec<Range<u64>>) -> Self {
        let mut at = 0;
        runs.retain_mut(|run| {
            run.start = run.start.max(at);
            let is_new = run.start < run.end;
            at = if is_new { run.end } else { at };
            is_new
        });
        Self(runs)
    }

    /// How many bytes are left.
    pub(super) fn bytes(&self) -> u64 {
        self.0.iter().map(|run| run.end - run.start).sum()
    }

    /// The run that `address` lies in.
    pub(super) fn run_at(&self, address: u64) -> Option<Range<u64>> {
        let at = self.0.partition_point(|run| run.end <= address);
        self.0.get(at).filter(|run| run.start <= address).cloned()
    }

    /// The parts of the runs that lie in `range`, in order.
    pub(super) fn within(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let first = self.0.partition_point(|run| run.end <= range.start);
        let runs =
            self.0.get(first..).unwrap_or_default().iter().take_while(move |run| run.start < range.end);
        runs.map(move |run| run.start.max(range.start)..run.end.min(range.end))
    }

    /// How many bytes are left in `range`.
    pub(super) fn bytes_within(&self, range: Range<u64>) -> u64 {
        // Of a range that ends before it begins nothing.
        self.within(range).map(|run| run.end.saturating_sub(run.start)).sum()
    }

    /// Gives out what is left of `claims`, which are in order of their first addresses and may
    /// overlap. How many bytes it was.
    pub(super) fn take(&mut self, claims: impl IntoIterator<Item = Range<u64>>) -> u64 {
        let mut left = Vec::with_capacity(self.0.len());
        let mut claims = claims.into_iter().peekable();
        let mut taken = 0;
        for run in self.0.drain(..) {
            let mut at = run.start;
            while at < run.end {
                while claims.next_if(|claim| claim.end <= at).is_some() {}
                let Some(claim) = claims.peek().filter(|claim| claim.start < run.end) else { break };
                if claim.start > at {
                    left.push(at..claim.start);
                    at = claim.start;
                }
                let until = claim.end.min(run.end);
                // A claim of nothing is passed over.
                taken += until.saturating_sub(at);
                at = at.max(until);
            }
            if at < run.end {
                left.push(at..run.end);
            }
        }
        self.0 = left;
        taken
    }
}

/// Puts claims in order of their first addresses.
pub(super) fn sorted(mut claims: Vec<Range<u64>>) -> Vec<Range<u64>> {
    /// So many again take much memory.
    const MANY: usize = 2 << 20;
    if claims.len() > MANY {
        claims.sort_unstable_by_key(|claim| claim.start);
    } else {
        // By the digits of their addresses: a comparison takes five times as long.
        radsort::sort_by_key(&mut claims, |claim| claim.start);
    }
    claims
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "lists of claims, of which some have one")]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_twice_counts_once() {
        let runs = vec![0x1000..0x3000, 0x1000..0x4000, 0x2000..0x3000, 0x6000..0x6000, 0x5000..0x7000];
        let resident = Resident::new(runs);
        assert_eq!(resident.bytes(), 0x5000);
        assert_eq!(resident.bytes_within(0x2000..0x6000), 0x3000);
    }

    #[test]
    fn each_byte_is_given_out_once() {
        let mut resident = Resident::new(vec![100..200, 300..400]);
        assert_eq!(resident.take([0..110, 50..120, 150..160, 155..170, 190..310]), 20 + 20 + 10 + 10);
        assert_eq!(resident, Resident::new(vec![120..150, 170..190, 310..400]));
        assert_eq!(resident.take([0..1000]), 30 + 20 + 90);
        assert_eq!((resident.bytes(), resident.take([0..1000])), (0, 0));
    }

    #[test]
    fn a_claim_spans_runs_and_one_of_nothing_takes_nothing() {
        let mut resident = Resident::new(vec![100..200, 300..400]);
        assert_eq!(resident.take([150..150, 150..350]), 100);
        assert_eq!(resident, Resident::new(vec![100..150, 350..400]));
        assert_eq!(resident.take([]), 0);
    }

    #[test]
    fn what_lies_within() {
        let resident = Resident::new(vec![100..200, 300..400]);
        assert_eq!(resident.within(150..350).collect::<Vec<_>>(), [150..200, 300..350]);
        assert_eq!((resident.bytes_within(0..1000), resident.bytes_within(200..300)), (200, 0));
        let (end, start) = (120, 180);
        assert_eq!(resident.bytes_within(start..end), 0, "which ends before it begins");
        assert_eq!(
            [99, 100, 199, 200, 399, 400].map(|at| resident.run_at(at).is_some()),
            [false, true, true, false, true, false]
        );
    }
}
