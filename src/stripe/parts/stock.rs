//! What there is to send: what is free, and what the server has.
//!
//! Invariant (carved work): what is free begins at multiples of the grain, and no gap of it is shorter than the least
//! part unless it ends where the file does, or an earlier run left it so.

use std::collections::BTreeSet;

use crate::types::ByteRange;
use crate::types::RangeSet;

use super::Part;
use super::Work;

#[derive(Clone, Debug)]
pub(super) enum Stock {
    Carved(Carved),
    Fixed(Fixed),
}

/// One file, cut as it is handed out.
#[derive(Clone, Debug)]
pub(super) struct Carved {
    pub(super) total: u64,
    pub(super) grain: u64,
    pub(super) least: u64,
    pub(super) most: u64,
    pub(super) free: RangeSet,
    stored: RangeSet,
    /// Gaps that were too short from the start.
    short: RangeSet,
}

/// Items that are what they are.
#[derive(Clone, Debug)]
pub(super) struct Fixed {
    pub(super) sizes: Vec<u64>,
    /// By size, then by place from the last to the first, so that of equals the first is taken first from the back.
    pub(super) free: BTreeSet<(u64, std::cmp::Reverse<usize>)>,
    pub(super) free_bytes: u64,
    stored: BTreeSet<usize>,
    stored_bytes: u64,
    total: u64,
}

impl Stock {
    pub(super) fn new(work: Work) -> Self {
        match work {
            Work::Carved {
                total,
                grain,
                least,
                most,
                done,
            } => Self::Carved(Carved::new(total, grain, least, most, &done)),
            Work::Fixed { sizes, done } => Self::Fixed(Fixed::new(sizes, &done)),
        }
    }

    pub(super) fn total(&self) -> u64 {
        match self {
            Self::Carved(c) => c.total,
            Self::Fixed(f) => f.total,
        }
    }

    pub(super) fn stored_bytes(&self) -> u64 {
        match self {
            Self::Carved(c) => c.stored.len(),
            Self::Fixed(f) => f.stored_bytes,
        }
    }

    pub(super) fn free_bytes(&self) -> u64 {
        match self {
            Self::Carved(c) => c.free.len(),
            Self::Fixed(f) => f.free_bytes,
        }
    }

    pub(super) fn nothing_free(&self) -> bool {
        match self {
            Self::Carved(c) => c.free.is_empty(),
            Self::Fixed(f) => f.free.is_empty(),
        }
    }

    /// Whether the server has everything.
    pub(super) fn is_complete(&self) -> bool {
        match self {
            Self::Carved(c) => c.stored.len() == c.total,
            Self::Fixed(f) => f.stored.len() == f.sizes.len(),
        }
    }

    /// Some small part that is free.
    pub(super) fn anything(&self) -> Option<Part> {
        match self {
            Self::Carved(c) => {
                let range = c.piece(c.free.iter().next()?, c.least);
                Some(Part { item: 0, range })
            }
            Self::Fixed(f) => Some(f.part(f.free.first()?.1.0)),
        }
    }

    /// Takes a part that is free as a whole.
    pub(super) fn take(&mut self, part: Part) {
        match self {
            Self::Carved(c) => {
                c.free.remove(part.range);
            }
            Self::Fixed(f) => f.take(part.item),
        }
    }

    /// Frees a part that nobody has any more.
    pub(super) fn give_back(&mut self, part: Part) {
        match self {
            Self::Carved(c) => {
                c.free.insert(part.range);
            }
            Self::Fixed(f) => f.give_back(part.item),
        }
    }

    /// The server has the part.
    pub(super) fn store(&mut self, part: Part) {
        match self {
            Self::Carved(c) => {
                c.stored.insert(part.range);
            }
            Self::Fixed(f) => {
                if f.stored.insert(part.item) {
                    f.stored_bytes += f.sizes.get(part.item).copied().unwrap_or(0);
                }
            }
        }
    }

    /// What of the part was stored is free again.
    pub(super) fn lose(&mut self, part: Part) {
        match self {
            Self::Carved(c) => c.lose(part.range),
            Self::Fixed(f) => {
                if f.stored.remove(&part.item) {
                    f.stored_bytes -= f.sizes.get(part.item).copied().unwrap_or(0);
                    f.give_back(part.item);
                }
            }
        }
    }

    /// What is wrong with the books, given the parts in flight (each once).
    pub(super) fn check(&self, flying: impl Iterator<Item = Part>) -> Result<(), String> {
        match self {
            Self::Carved(c) => c.check(flying),
            Self::Fixed(f) => f.check(flying),
        }
    }
}

impl Carved {
    fn new(total: u64, grain: u64, least: u64, most: u64, done: &RangeSet) -> Self {
        let grain = grain.max(1);
        let least = least.max(1).next_multiple_of(grain);
        let mut carved = Self {
            total,
            grain,
            least,
            most: (most / grain * grain).max(least),
            free: RangeSet::new(),
            stored: RangeSet::new(),
            short: RangeSet::new(),
        };
        let all = ByteRange::new(0, total);
        // Only what lies between two borders of the grain can be left out.
        carved.stored = done.within(all).map(|r| carved.inner(r)).collect();
        carved.free = carved.stored.gaps(all).into_iter().collect();
        carved.note_short();
        carved
    }

    fn inner(&self, range: ByteRange) -> ByteRange {
        let end = if range.end >= self.total {
            self.total
        } else {
            range.end / self.grain * self.grain
        };
        ByteRange::new(range.start.next_multiple_of(self.grain), end)
    }

    fn lose(&mut self, range: ByteRange) {
        let start = range.start / self.grain * self.grain;
        let outer = ByteRange::new(start, range.end.next_multiple_of(self.grain).min(self.total));
        let gone: Vec<ByteRange> = self.stored.within(outer).collect();
        for range in gone {
            self.stored.remove(range);
            self.free.insert(range);
        }
        self.note_short();
    }

    fn note_short(&mut self) {
        let short: Vec<ByteRange> = self.free.iter().filter(|r| self.is_short(*r)).collect();
        for range in short {
            self.short.insert(range);
        }
    }

    fn is_short(&self, gap: ByteRange) -> bool {
        gap.len() < self.least && gap.end < self.total
    }

    /// The piece at the start of `gap` that comes nearest to `wanted` bytes without breaking a rule.
    pub(super) fn piece(&self, gap: ByteRange, wanted: u64) -> ByteRange {
        let up_to = |len: u64| ByteRange::new(gap.start, gap.start + len.min(gap.len()));
        let whole = gap.len();
        let wanted = (wanted / self.grain * self.grain).clamp(self.least, self.most);
        if whole <= wanted {
            return up_to(whole);
        }
        // At the end of the file the rest may be as short as it likes.
        let spare = if gap.end == self.total { 0 } else { self.least };
        if whole - wanted >= spare {
            return up_to(wanted);
        }
        // Either all of it, or so much less that the least is left.
        let shorter = (whole - self.least) / self.grain * self.grain;
        let all_is_nearer = whole - wanted <= wanted.saturating_sub(shorter);
        if shorter < self.least || (all_is_nearer && whole <= self.most) {
            up_to(whole)
        } else {
            up_to(shorter)
        }
    }

    /// The last `wanted` bytes of the gap that ends where the file does, or more where too little would be left before.
    pub(super) fn end_piece(&self, gap: ByteRange, wanted: u64) -> ByteRange {
        let start = gap.end.saturating_sub(wanted.max(self.grain)) / self.grain * self.grain;
        if start < gap.start.saturating_add(self.least) {
            self.piece(gap, gap.len())
        } else {
            ByteRange::new(start, gap.end)
        }
    }

    fn check(&self, flying: impl Iterator<Item = Part>) -> Result<(), String> {
        let mut all = self.stored.clone();
        let mut sum = all.len();
        for part in flying {
            let r = part.range;
            if part.item != 0 || r.is_empty() || r.end > self.total {
                return Err(format!("{part:?} is no part"));
            }
            if r.start % self.grain != 0 || (r.end < self.total && r.end % self.grain != 0) {
                return Err(format!("{r} is off the grain of {}", self.grain));
            }
            if self.is_short(r) && !self.short.contains(r) {
                return Err(format!("{r} is shorter than {}", self.least));
            }
            if r.len() > self.most.max(2 * self.least) {
                return Err(format!("{r} is longer than {}", self.most));
            }
            all.insert(r);
            sum += r.len();
        }
        for gap in &self.free {
            if gap.start % self.grain != 0 || (self.is_short(gap) && !self.short.contains(gap)) {
                return Err(format!("the gap {gap} can't be sent by itself"));
            }
            all.insert(gap);
            sum += gap.len();
        }
        if (all.len(), sum) != (self.total, self.total) {
            return Err(format!(
                "{} of {} bytes have a place, {sum} places",
                all.len(),
                self.total
            ));
        }
        Ok(())
    }
}

impl Fixed {
    fn new(sizes: Vec<u64>, done: &BTreeSet<usize>) -> Self {
        let mut fixed = Self {
            free: BTreeSet::new(),
            free_bytes: 0,
            stored: BTreeSet::new(),
            stored_bytes: 0,
            total: sizes.iter().sum(),
            sizes,
        };
        for item in 0..fixed.sizes.len() {
            if done.contains(&item) {
                fixed.stored.insert(item);
                fixed.stored_bytes += fixed.sizes.get(item).copied().unwrap_or(0);
            } else {
                fixed.give_back(item);
            }
        }
        fixed
    }

    fn take(&mut self, item: usize) {
        let size = self.sizes.get(item).copied().unwrap_or(0);
        if self.free.remove(&(size, std::cmp::Reverse(item))) {
            self.free_bytes -= size;
        }
    }

    fn give_back(&mut self, item: usize) {
        if let Some(&size) = self.sizes.get(item)
            && self.free.insert((size, std::cmp::Reverse(item)))
        {
            self.free_bytes += size;
        }
    }

    pub(super) fn part(&self, item: usize) -> Part {
        let size = self.sizes.get(item).copied().unwrap_or(0);
        Part {
            item,
            range: ByteRange::new(0, size),
        }
    }

    fn check(&self, flying: impl Iterator<Item = Part>) -> Result<(), String> {
        let mut places = vec![0; self.sizes.len()];
        let flying: Vec<usize> = flying.map(|p| p.item).collect();
        let free = self.free.iter().map(|f| f.1.0);
        for item in flying.into_iter().chain(free).chain(self.stored.iter().copied()) {
            match places.get_mut(item) {
                Some(count) => *count += 1,
                None => return Err(format!("there is no item {item}")),
            }
        }
        let sum: u64 = self.free.iter().map(|f| f.0).sum();
        match places.iter().position(|n| *n != 1) {
            Some(item) => Err(format!("item {item} has not one place")),
            None if sum != self.free_bytes => Err("the free bytes are not counted right".to_owned()),
            None => Ok(()),
        }
    }
}
