//! Disks that change, each a list of numbers from which every byte can be made again, and the dice that decide how.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::support::bytes::{KIB, MIB, noise};

const CELL: u64 = 64 * KIB;
const SMALLEST: u64 = 4 * MIB;
const LARGEST: u64 = 32 * MIB;

/// The same throws for the same seed.
pub struct Dice(Box<dyn Read>);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(Box::new(noise(seed)))
    }

    pub fn number(&mut self) -> u64 {
        let mut bytes = [0; 8];
        self.0.read_exact(&mut bytes).expect("noise never ends");
        u64::from_le_bytes(bytes)
    }

    /// From 0 to `end - 1`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.number() % end.max(1)
    }

    pub fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// From 0 to 1.
    pub fn share(&mut self) -> f64 {
        self.below(1 << 32) as f64 / (1u64 << 32) as f64
    }

    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.index(of.len())]
    }
}

/// 64 KiB of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cell {
    Zeros,
    Noise(u64),
    Text(u64),
}

impl Cell {
    fn fill(self, bytes: &mut [u8]) {
        match self {
            Self::Zeros => bytes.fill(0),
            Self::Noise(seed) => noise(seed).read_exact(bytes).expect("noise never ends"),
            Self::Text(seed) => {
                let mut rest = &mut *bytes;
                let mut number = seed;
                // A full slice ends it.
                while writeln!(rest, "{number:016x} the quick brown fox jumps over the lazy dog").is_ok() {
                    number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                }
            }
        }
    }
}

/// What is on a disk at some time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    cells: Vec<Cell>,
    len: u64,
}

impl Content {
    pub fn new(dice: &mut Dice) -> Self {
        let mut new = Self {
            cells: Vec::new(),
            len: 0,
        };
        new.resize(SMALLEST + dice.below(LARGEST / 2 - SMALLEST));
        for _ in 0..8 {
            new.edit(dice, None);
        }
        new
    }

    /// The next day: some ranges are written, moved, trimmed, or copied from another disk.
    pub fn change(&mut self, dice: &mut Dice, other: &Self) {
        for _ in 0..=dice.below(5) {
            self.edit(dice, Some(other));
        }
        if dice.percent(10) {
            // Not a multiple of anything: the last block is a short one.
            self.resize(SMALLEST + dice.below(LARGEST - SMALLEST));
        }
    }

    fn resize(&mut self, len: u64) {
        self.len = len;
        self.cells.resize(len.div_ceil(CELL) as usize, Cell::Zeros);
    }

    fn edit(&mut self, dice: &mut Dice, other: Option<&Self>) {
        let end = self.cells.len();
        // Half of them as whole blocks of 1 MiB, which can be found again at another place; the others as they come.
        let align = if dice.percent(50) { 16 } else { 1 };
        let (at, count) = (
            dice.index(end) / align * align,
            (1 + dice.index(64)).next_multiple_of(align),
        );
        let place = at..end.min(at + count);
        let kind = dice.below(10);
        let source = match (kind, other) {
            (0, _) => Some(&self.cells),
            (1 | 2, Some(other)) => Some(&other.cells),
            _ => None,
        };
        let copied = source.map(|cells| {
            let from = dice.index(cells.len()) / align * align;
            let last = cells.len().min(from + place.len());
            cells[from..last].to_vec()
        });
        for (number, cell) in self.cells[place].iter_mut().enumerate() {
            *cell = match (&copied, kind) {
                (Some(copied), _) => copied.get(number).copied().unwrap_or(Cell::Zeros),
                (None, 3) => Cell::Zeros,
                (None, 4..=6) => Cell::Text(dice.number()),
                (None, _) => Cell::Noise(dice.number()),
            };
        }
    }

    /// Zeros become holes.
    pub fn write(&self, path: &Path) {
        let file = File::create(path).expect("creates a disk");
        file.set_len(self.len).expect("sizes a disk");
        let mut bytes = vec![0; CELL as usize];
        for (cell, (at, len)) in self.cells.iter().zip(self.places()) {
            if *cell != Cell::Zeros {
                cell.fill(&mut bytes);
                file.write_all_at(&bytes[..len], at).expect("writes a disk");
            }
        }
    }

    /// Compares every byte; gives how many.
    pub fn compare(&self, file: &File) -> Result<u64, String> {
        let (mut expected, mut found) = (vec![0; CELL as usize], vec![0; CELL as usize]);
        for (cell, (at, len)) in self.cells.iter().zip(self.places()) {
            cell.fill(&mut expected);
            let read = file.read_exact_at(&mut found[..len], at);
            read.map_err(|error| format!("reading at {at} of {}: {error}", self.len))?;
            if found[..len] != expected[..len] {
                return Err(format!(
                    "it differs between {at} and {} of {}",
                    at + len as u64,
                    self.len
                ));
            }
        }
        // By reading and not by stat(2), which in a mount is about names: the one that was opened may be gone.
        match file.read_at(&mut found[..1], self.len) {
            Ok(0) => Ok(self.len),
            end => Err(format!("it goes on after {} bytes: {end:?}", self.len)),
        }
    }

    fn places(&self) -> impl Iterator<Item = (u64, usize)> {
        let len = self.len;
        (0..len)
            .step_by(CELL as usize)
            .map(move |at| (at, (len - at).min(CELL) as usize))
    }
}
