//! Packets as a TUN device hands them over: up to 64 KiB of TCP in one piece, which stand for many packets of the
//! line. A [`Frame`] counts those, and can be cut between them, so that the wire delays and loses single packets.

use std::ops::Range;

/// Bytes of `struct virtio_net_hdr` (linux/virtio_net.h) in front of each packet.
pub const VNET_BYTES: usize = 10;
/// The longest IPv4 packet.
const MAX_PACKET_BYTES: usize = 65535;
/// Bytes of a buffer for any packet of a TUN device.
pub const MAX_FRAME_BYTES: usize = VNET_BYTES + MAX_PACKET_BYTES;

const NEEDS_CHECKSUM: u8 = 1;
const GSO_TCP4: u8 = 1;
const GSO_BITS: u8 = 0x7f;
const IPV4_MIN: usize = 20;
const TCP_MIN: usize = 20;
const TCP: u8 = 6;
const FIN: u8 = 0x01;
const PUSH: u8 = 0x08;
const CONGESTION_REDUCED: u8 = 0x80;

/// One piece as the kernel handed it over: the bytes of `struct virtio_net_hdr`, then an IP packet.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    buffer: Vec<u8>,
    len: usize,
    /// Of a piece that stands for several packets.
    parts: Option<Parts>,
}

/// The way in which a piece falls into packets: all have the same headers, and all but the last as much payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Parts {
    ip_header: usize,
    headers: usize,
    payload: usize,
    per_packet: usize,
}

impl Frame {
    /// Takes the first `len` bytes of a buffer as a piece.
    pub fn new(buffer: Vec<u8>, len: usize) -> Frame {
        let parts = Parts::of(&buffer[..len]);
        Frame { buffer, len, parts }
    }

    /// The bytes for a TUN device.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[..self.len]
    }

    /// The buffer, to be used again.
    pub fn into_buffer(self) -> Vec<u8> {
        self.buffer
    }

    /// Packets on the line.
    pub fn packets(&self) -> usize {
        self.parts.map_or(1, |parts| parts.payload.div_ceil(parts.per_packet))
    }

    /// Bytes of the longest packet, with IP and TCP headers.
    pub fn packet_bytes(&self) -> usize {
        self.parts
            .map_or(self.len - VNET_BYTES, |parts| parts.headers + parts.per_packet)
    }

    /// Bytes on the line: those of all packets, each with its headers. What lies under IP is not counted.
    pub fn line_bytes(&self) -> usize {
        self.parts.map_or(self.len - VNET_BYTES, |parts| {
            self.packets() * parts.headers + parts.payload
        })
    }

    /// A piece of some of the packets.
    pub fn part(&self, packets: Range<usize>) -> Frame {
        let Some(parts) = self.parts else {
            return Frame::new(self.bytes().to_vec(), self.len);
        };
        let start = packets.start * parts.per_packet;
        let end = parts.payload.min(packets.end * parts.per_packet);
        let from = VNET_BYTES + parts.headers;
        let mut bytes = Vec::with_capacity(from + end - start);
        bytes.extend_from_slice(&self.buffer[..from]);
        bytes.extend_from_slice(&self.buffer[from + start..from + end]);

        if packets.len() == 1 {
            bytes[1] = 0;
            bytes[4..6].fill(0);
        }
        let ip = VNET_BYTES;
        let tcp = ip + parts.ip_header;
        let total = bytes.len() - VNET_BYTES;
        put16(&mut bytes, ip + 2, total);
        let id = usize::from(get16(&bytes, ip + 4)) + packets.start;
        put16(&mut bytes, ip + 4, id & 0xffff);
        put16(&mut bytes, ip + 10, 0);
        let checksum = !sum(0, &bytes[ip..tcp]);
        put16(&mut bytes, ip + 10, checksum.into());

        let sequence = u32::from_be_bytes([bytes[tcp + 4], bytes[tcp + 5], bytes[tcp + 6], bytes[tcp + 7]]);
        let offset = u32::try_from(start).expect("less than 64 KiB");
        bytes[tcp + 4..tcp + 8].copy_from_slice(&sequence.wrapping_add(offset).to_be_bytes());
        if packets.start > 0 {
            bytes[tcp + 13] &= !CONGESTION_REDUCED;
        }
        if end < parts.payload {
            bytes[tcp + 13] &= !(FIN | PUSH);
        }
        // The checksum is open: the field has the sum of the pseudo header, which contains the length.
        let tcp_bytes = u32::try_from(total - parts.ip_header).expect("less than 64 KiB");
        let checksum = sum(u32::from(TCP) + tcp_bytes, &bytes[ip + 12..ip + 20]);
        put16(&mut bytes, tcp + 16, checksum.into());
        let len = bytes.len();
        Frame::new(bytes, len)
    }
}

impl Parts {
    fn of(bytes: &[u8]) -> Option<Parts> {
        let per_packet = usize::from(u16::from_ne_bytes([*bytes.get(4)?, *bytes.get(5)?]));
        if bytes[0] & NEEDS_CHECKSUM == 0 || bytes[1] & GSO_BITS != GSO_TCP4 || per_packet == 0 {
            return None;
        }
        let packet = bytes.get(VNET_BYTES..)?;
        let ip_header = usize::from(packet.first()? & 0x0f) * 4;
        let headers = ip_header + usize::from(packet.get(ip_header + 12)? >> 4) * 4;
        if ip_header < IPV4_MIN || headers < ip_header + TCP_MIN || headers >= packet.len() {
            return None;
        }
        Some(Parts {
            ip_header,
            headers,
            payload: packet.len() - headers,
            per_packet,
        })
    }
}

fn get16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn put16(bytes: &mut [u8], at: usize, number: usize) {
    let number = u16::try_from(number).expect("a number of 16 bits");
    bytes[at..at + 2].copy_from_slice(&number.to_be_bytes());
}

/// The sum of the internet checksum (RFC 1071), not inverted. The bytes are of an even number.
fn sum(start: u32, bytes: &[u8]) -> u16 {
    let mut sum = start;
    for pair in bytes.chunks_exact(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).expect("folded to 16 bits")
}

#[cfg(test)]
mod tests {
    use super::{FIN, Frame, PUSH, VNET_BYTES, get16, put16, sum};

    /// A piece of 10 packets of 1000 bytes and one of 500, sequence number 7000, each payload byte its packet's number.
    fn piece() -> Frame {
        let mut bytes = vec![0; VNET_BYTES + 40];
        bytes[0] = 1;
        bytes[1] = 1;
        bytes[4..6].copy_from_slice(&1000_u16.to_ne_bytes());
        bytes[10] = 0x45;
        bytes[19] = 6;
        bytes[22..30].copy_from_slice(&[10, 77, 0, 1, 10, 77, 0, 2]);
        bytes[34..38].copy_from_slice(&7000_u32.to_be_bytes());
        bytes[42] = 5 << 4;
        bytes[43] = FIN | PUSH | 0x10;
        bytes.extend((0..10_500).map(|at| (at / 1000) as u8));
        put16(&mut bytes, 12, 10_540);
        let len = bytes.len();
        Frame::new(bytes, len)
    }

    #[test]
    fn a_piece_counts_the_packets_it_stands_for() {
        let piece = piece();
        assert_eq!(piece.packets(), 11);
        assert_eq!(piece.packet_bytes(), 1040);
        assert_eq!(piece.line_bytes(), 10_500 + 11 * 40);
    }

    #[test]
    fn a_part_is_what_the_sender_would_have_sent_for_its_packets() {
        let part = piece().part(3..5);
        let bytes = part.bytes();
        assert_eq!((part.packets(), part.line_bytes()), (2, 2080));
        assert_eq!(get16(bytes, 12), 2040);
        assert_eq!(sum(0, &bytes[10..30]), 0xffff, "the checksum of the IP header is right");
        assert_eq!(&bytes[34..38], &10_000_u32.to_be_bytes());
        assert_eq!(bytes[43], 0x10, "FIN and PUSH belong to the last packet");
        assert!(bytes[50..1050].iter().all(|byte| *byte == 3) && bytes[1050..].iter().all(|byte| *byte == 4));
        let pseudo_header = [10, 77, 0, 1, 10, 77, 0, 2, 0, 6, 0x07, 0xe4];
        assert_eq!(get16(bytes, 46), sum(0, &pseudo_header));

        let last = piece().part(10..11);
        assert_eq!((last.packets(), last.line_bytes()), (1, 540));
        assert_eq!(last.bytes()[1], 0, "a single packet is no longer a piece of several");
        assert_eq!(last.bytes()[43], FIN | PUSH | 0x10);
    }
}
