//! LZO1X, the decoder alone. The format is described in the kernel's Documentation/staging/lzo.rst; btrfs uses it
//! without the run-length extension.

/// The packed bytes not read yet.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> Option<usize> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(usize::from(*first))
    }

    fn word(&mut self) -> Option<usize> {
        Some(self.byte()? | self.byte()? << 8)
    }

    fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes)
    }

    /// Reads the rest of a length whose bits in the instruction are all zero: zero bytes count 255 each.
    fn length(&mut self, all_bits: usize) -> Option<usize> {
        let zeros = self.0.iter().take_while(|byte| **byte == 0).count();
        self.bytes(zeros)?;
        zeros.checked_mul(255)?.checked_add(all_bits)?.checked_add(self.byte()?)
    }
}

/// Unpacks one stream and appends it to `out`: at most `max_bytes`. `None` if it is invalid.
pub(super) fn unpack(packed: &[u8], out: &mut Vec<u8>, max_bytes: usize) -> Option<()> {
    let start = out.len();
    let end = start.checked_add(max_bytes)?;
    let mut input = Input(packed);
    // Literals that the last instruction copied; 4 stands for more.
    let mut literals = 0;
    if let Some(first @ 18..) = input.0.first().map(|first| usize::from(*first)) {
        input.byte()?;
        literals = copy_literals(&mut input, out, first - 17, end)?;
    }
    loop {
        let op = input.byte()?;
        let (distance, len, next) = match op {
            64.. => {
                let distance = 1 + (op >> 2 & 7) + (input.byte()? << 3);
                (distance, (op >> 5) + 1, op & 3)
            }
            32.. => {
                let bits = op & 31;
                let len = if bits == 0 { input.length(31)? } else { bits };
                let word = input.word()?;
                (1 + (word >> 2), len.checked_add(2)?, word & 3)
            }
            16.. => {
                let bits = op & 7;
                let len = if bits == 0 { input.length(7)? } else { bits };
                let word = input.word()?;
                let distance = ((op & 8) << 11) + (word >> 2);
                if distance == 0 {
                    return Some(());
                }
                (distance + 0x4000, len.checked_add(2)?, word & 3)
            }
            _ if literals == 0 => {
                let len = if op == 0 { input.length(15)? } else { op };
                literals = copy_literals(&mut input, out, len.checked_add(3)?, end)?;
                continue;
            }
            _ if literals == 4 => (0x801 + (op >> 2) + (input.byte()? << 2), 3, op & 3),
            _ => (1 + (op >> 2) + (input.byte()? << 2), 2, op & 3),
        };
        copy_match(out, start, distance, len, end)?;
        literals = copy_literals(&mut input, out, next, end)?;
    }
}

fn copy_literals(input: &mut Input<'_>, out: &mut Vec<u8>, len: usize, end: usize) -> Option<usize> {
    if len > end.checked_sub(out.len())? {
        return None;
    }
    out.extend_from_slice(input.bytes(len)?);
    Some(len.min(4))
}

/// Repeats `len` bytes from `distance` back. They may overlap with what is written.
fn copy_match(out: &mut Vec<u8>, start: usize, distance: usize, len: usize, end: usize) -> Option<()> {
    let from = out.len().checked_sub(distance).filter(|from| *from >= start)?;
    if len > end.checked_sub(out.len())? {
        return None;
    }
    if distance >= len {
        out.extend_from_within(from..from + len);
    } else {
        for at in from..from + len {
            out.push(out[at]);
        }
    }
    Some(())
}
