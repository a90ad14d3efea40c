//! Loading of the opcodes of the asynchronous proxy, of clusters and of dependent grids.

use super::lanes::{Kind, LaneOp, lane_op};
use super::load::{LoadError, Loader};
use super::{
    Address, BulkCopy, BulkWay, ClusterBarrier, InstructionClass, Mbarrier, Narrow, Op, Proxy, Slots,
    TensorCopy, TensorFormat, Wgmma, WgmmaLeft,
};
use crate::ptx::{Class, Instruction, Operand};

type Result<T> = std::result::Result<T, LoadError>;

/// First words of opcodes that only newer architectures have, and which.
const NEWER: [(&str, &str); 4] = [
    ("tcgen05", "the tensor memory of compute_100a"),
    ("clusterlaunchcontrol", "the cluster launch control of compute_100"),
    ("tensormap", "changes to tensor maps on the device"),
    ("multimem", "memory of several devices"),
];

impl Loader<'_> {
    /// Loads an opcode of this family; `false` when it belongs to another.
    pub(super) fn async_form(&mut self, instruction: &Instruction) -> Result<bool> {
        let opcode = instruction.opcode.as_str();
        let parts: Vec<&str> = opcode.split('.').collect();
        if let Some((_, what)) = NEWER.iter().find(|(name, _)| *name == parts[0]) {
            return Err(self.fail(format!("{opcode} is an instruction for {what}, which is not modelled")));
        }
        if let Some(part) =
            parts.iter().find(|part| part.starts_with("kind::") || part.starts_with("cta_group::"))
        {
            return Err(self.fail(format!(
                "{opcode} is an instruction of compute_100a or compute_120a (.{part}), which is not modelled"
            )));
        }
        let second = parts.get(1).copied().unwrap_or_default();
        let class = InstructionClass::Synchronize;
        match (parts[0], second) {
            ("mbarrier", _) => self.mbarrier(&parts)?,
            ("cp", "async") if parts.get(2) == Some(&"bulk") => self.bulk(&parts)?,
            ("cp", "reduce") => {
                return Err(self.unsupported("a bulk copy that reduces"));
            }
            ("wgmma", _) => self.wgmma(opcode, &parts)?,
            ("fence", "proxy") => {
                let proxy = if parts.get(2) == Some(&"async") { Proxy::Async } else { Proxy::Other };
                self.emit_current(Op::ProxyFence(proxy), class, &[], &[]);
            }
            ("fence", "mbarrier_init") => {
                self.emit_current(Op::ProxyFence(Proxy::BarrierInit), class, &[], &[]);
            }
            ("griddepcontrol", "wait") => self.emit_current(Op::DependencyWait, class, &[], &[]),
            ("griddepcontrol", "launch_dependents") => {
                self.emit_current(Op::LaunchDependents, class, &[], &[]);
            }
            ("setmaxnreg", "inc" | "dec") => {
                let Operand::Integer(count) = *self.operand(0)? else {
                    return Err(self.fail("setmaxnreg takes a number"));
                };
                if !(24..=256).contains(&count) || count % 8 != 0 {
                    return Err(
                        self.fail(format!("setmaxnreg takes a multiple of 8 from 24 to 256, not {count}"))
                    );
                }
                self.emit_current(Op::Registers(second == "inc", count as u32), class, &[], &[]);
            }
            ("barrier", "cluster") => {
                let waits = parts.get(2) == Some(&"wait");
                if !waits && parts.get(2) != Some(&"arrive") {
                    return Err(self.unsupported("this barrier of a cluster"));
                }
                let op = ClusterBarrier {
                    waits,
                    aligned: parts.contains(&"aligned"),
                    orders: !parts.contains(&"relaxed"),
                };
                self.emit_current(Op::ClusterBarrier(op), class, &[], &[]);
            }
            ("mapa", _) => self.map_address(&parts)?,
            ("getctarank", _) => self.rank_of(&parts)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// `mapa`: the address of the same place in another block's shared memory.
    fn map_address(&mut self, parts: &[&str]) -> Result<()> {
        let long = parts.last() == Some(&"u64");
        let class = if long { Class::Long } else { Class::Word };
        let to = self.destination(self.operand(0)?, class)?;
        let from = self.source(self.operand(1)?, Kind { class, bits: if long { 64 } else { 32 } })?;
        let rank = self.word(self.operand(2)?)?;
        let op = if long {
            lane_op!(|place: u64, rank: u32| -> u64 {
                place & !0xff00_0000 | u64::from(rank.wrapping_add(1)) << 24
            })
        } else {
            lane_op!(|place: u32, rank: u32| -> u32 { place & 0xff_ffff | (rank.wrapping_add(1)) << 24 })
        };
        let uses = [Self::unified(class, from), rank];
        self.emit_address(&op, to, [from, rank], &uses, Self::unified(class, to));
        Ok(())
    }

    /// `getctarank`: whose shared memory an address lies in.
    fn rank_of(&mut self, parts: &[&str]) -> Result<()> {
        let long = parts.last() == Some(&"u64");
        let class = if long { Class::Long } else { Class::Word };
        let to = self.destination(self.operand(0)?, Class::Word)?;
        let from = self.source(self.operand(1)?, Kind { class, bits: if long { 64 } else { 32 } })?;
        let own = self.special("%cluster_ctarank")?;
        let op = if long {
            lane_op!(|place: u64, own: u32| -> u32 {
                let rank = (place >> 24) as u32 & 0xff;
                if rank == 0 { own } else { rank - 1 }
            })
        } else {
            lane_op!(|place: u32, own: u32| -> u32 { if place >> 24 == 0 { own } else { (place >> 24) - 1 } })
        };
        let uses = [Self::unified(class, from), own];
        self.emit_address(&op, to, [from, own], &uses, to);
        Ok(())
    }

    fn emit_address(&mut self, op: &LaneOp, to: u32, [from, rank]: [u32; 2], uses: &[u32], defines: u32) {
        let slots = Slots { destination: to, sources: [from, rank, 0, 0] };
        let op = Op::Lanes { run: op.run, slots };
        self.emit_current(op, InstructionClass::Integer, uses, &[defines]);
    }

    fn bulk(&mut self, parts: &[&str]) -> Result<()> {
        let class = InstructionClass::AsyncCopy;
        match parts.get(3).copied() {
            Some("commit_group") => self.emit_current(Op::BulkCommit, class, &[], &[]),
            Some("wait_group") => {
                let Operand::Integer(left) = *self.operand(0)? else {
                    return Err(self.fail("cp.async.bulk.wait_group takes a number"));
                };
                let op = Op::BulkWait(left as u32, parts.contains(&"read"));
                self.emit_current(op, class, &[], &[]);
            }
            Some("prefetch") if parts.get(4) == Some(&"tensor") => {
                let (map, coordinates) = self.tensor_place(self.operand(0)?, parts)?;
                let shared = Address { base: None, offset: 0 };
                self.emit_tensor(TensorCopy {
                    way: None,
                    map,
                    coordinates,
                    shared,
                    barrier: None,
                    blocks: None,
                });
            }
            Some("prefetch") => self.emit_current(Op::Nothing, class, &[], &[]),
            Some("tensor") => self.tensor(parts)?,
            Some("shared::cluster" | "shared::cta")
                if matches!(parts.get(4), Some(&"global" | &"shared::cta")) =>
            {
                let way = if parts[4] == "global" { BulkWay::ToShared } else { BulkWay::ToPeer };
                let (to, _) = self.address(self.operand(0)?)?;
                let (from, _) = self.address(self.operand(1)?)?;
                let size = self.word(self.operand(2)?)?;
                let (barrier, _) = self.address(self.operand(3)?)?;
                let blocks = self.multicast(parts, 4)?;
                let mut uses: Vec<u32> =
                    [&to, &from, &barrier].into_iter().flat_map(Self::address_uses).collect();
                uses.push(size);
                uses.extend(blocks);
                let copy = BulkCopy { way, to, from, size, barrier: Some(barrier), blocks };
                self.emit_current(Op::BulkCopy(Box::new(copy)), class, &uses, &[]);
            }
            Some("global") if parts.get(4) == Some(&"shared::cta") && !parts.contains(&"cp_mask") => {
                let (to, _) = self.address(self.operand(0)?)?;
                let (from, _) = self.address(self.operand(1)?)?;
                let size = self.word(self.operand(2)?)?;
                let mut uses: Vec<u32> = [&to, &from].into_iter().flat_map(Self::address_uses).collect();
                uses.push(size);
                let way = BulkWay::ToGlobal;
                let copy = BulkCopy { way, to, from, size, barrier: None, blocks: None };
                self.emit_current(Op::BulkCopy(Box::new(copy)), class, &uses, &[]);
            }
            _ => return Err(self.unsupported("this bulk copy")),
        }
        Ok(())
    }

    /// The mask of blocks of a multicast, which stands behind the other operands.
    fn multicast(&mut self, parts: &[&str], index: usize) -> Result<Option<u32>> {
        if !parts.contains(&"multicast::cluster") {
            return Ok(None);
        }
        let kind = Kind { class: Class::Word, bits: 16 };
        self.source(self.operand(index)?, kind).map(Some)
    }

    fn tensor(&mut self, parts: &[&str]) -> Result<()> {
        let odd = |part: &&str| part.starts_with("im2col") || part.starts_with("tile::");
        if parts.iter().any(odd) {
            return Err(self.unsupported("a tensor copy that is not plainly tiled"));
        }
        let to_shared = matches!(parts.get(5), Some(&"shared::cluster" | &"shared::cta"))
            && parts.get(6) == Some(&"global");
        let to_global = parts.get(5) == Some(&"global") && parts.get(6) == Some(&"shared::cta");
        let copy = if to_shared {
            let (shared, _) = self.address(self.operand(0)?)?;
            let (map, coordinates) = self.tensor_place(self.operand(1)?, parts)?;
            let (barrier, _) = self.address(self.operand(2)?)?;
            let blocks = self.multicast(parts, 3)?;
            let way = Some(BulkWay::ToShared);
            TensorCopy { way, map, coordinates, shared, barrier: Some(barrier), blocks }
        } else if to_global {
            let (map, coordinates) = self.tensor_place(self.operand(0)?, parts)?;
            let (shared, _) = self.address(self.operand(1)?)?;
            let way = Some(BulkWay::ToGlobal);
            TensorCopy { way, map, coordinates, shared, barrier: None, blocks: None }
        } else {
            return Err(self.unsupported("this tensor copy"));
        };
        self.emit_tensor(copy);
        Ok(())
    }

    fn emit_tensor(&mut self, copy: TensorCopy) {
        let addresses = [Some(&copy.map), Some(&copy.shared), copy.barrier.as_ref()];
        let mut uses: Vec<u32> = addresses.into_iter().flatten().flat_map(Self::address_uses).collect();
        uses.extend(copy.coordinates.iter().chain(&copy.blocks));
        self.emit_current(Op::TensorCopy(Box::new(copy)), InstructionClass::AsyncCopy, &uses, &[]);
    }

    /// A tensor map and coordinates, as many as the opcode names.
    fn tensor_place(&mut self, operand: &Operand, parts: &[&str]) -> Result<(Address, Vec<u32>)> {
        let Operand::Tensor(base, offset, coordinates) = operand else {
            return Err(self.fail(format!("a tensor map with coordinates was expected, found {operand:?}")));
        };
        let rank = parts.iter().find_map(|part| match *part {
            "1d" => Some(1),
            "2d" => Some(2),
            "3d" => Some(3),
            "4d" => Some(4),
            "5d" => Some(5),
            _ => None,
        });
        if rank != Some(coordinates.len()) {
            return Err(self.fail(format!(
                "{} coordinates differ from the dimensions of the opcode",
                coordinates.len()
            )));
        }
        let (map, _) = self.address_of(base, *offset)?;
        let coordinates = coordinates.iter().map(|one| self.word(one)).collect::<Result<_>>()?;
        Ok((map, coordinates))
    }

    fn mbarrier(&mut self, parts: &[&str]) -> Result<()> {
        let class = InstructionClass::Synchronize;
        let name = parts.get(1).copied().unwrap_or_default();
        let emit = |loader: &mut Self, op: Mbarrier, address: Address, more: &[u32], defines: &[u32]| {
            let mut uses = Self::address_uses(&address);
            uses.extend(more);
            loader.emit_current(Op::Mbarrier(Box::new(op), address), class, &uses, defines);
        };
        let orders = !parts.contains(&"relaxed");
        match name {
            "init" => {
                let (address, _) = self.address(self.operand(0)?)?;
                let count = self.word(self.operand(1)?)?;
                emit(self, Mbarrier::Init { count }, address, &[count], &[]);
            }
            "inval" => {
                let (address, _) = self.address(self.operand(0)?)?;
                emit(self, Mbarrier::Invalidate, address, &[], &[]);
            }
            "expect_tx" | "complete_tx" => {
                let (address, _) = self.address(self.operand(0)?)?;
                let bytes = self.word(self.operand(1)?)?;
                let complete = name == "complete_tx";
                emit(self, Mbarrier::Expect { bytes, complete }, address, &[bytes], &[]);
            }
            "arrive" | "arrive_drop" => {
                let state = match self.operand(0)? {
                    Operand::Sink => None,
                    other => Some(self.destination(other, Class::Long)?),
                };
                let (address, _) = self.address(self.operand(1)?)?;
                let third = if self.operand_count() > 2 { Some(self.word(self.operand(2)?)?) } else { None };
                let expects = parts.contains(&"expect_tx");
                let op = Mbarrier::Arrive {
                    state,
                    count: third.filter(|_| !expects),
                    bytes: third.filter(|_| expects),
                    drop: name == "arrive_drop",
                    releases: orders,
                };
                let uses: Vec<u32> = third.into_iter().collect();
                let defines: Vec<u32> =
                    state.map(|slot| Self::unified(Class::Long, slot)).into_iter().collect();
                emit(self, op, address, &uses, &defines);
            }
            "test_wait" | "try_wait" => {
                let done = self.destination(self.operand(0)?, Class::Predicate)?;
                let (address, _) = self.address(self.operand(1)?)?;
                let parity = parts.contains(&"parity");
                let token = self.operand(2)?;
                let (token, use_id) = if parity {
                    let slot = self.word(token)?;
                    (slot, slot)
                } else {
                    let slot = self.source(token, Kind { class: Class::Long, bits: 64 })?;
                    (slot, Self::unified(Class::Long, slot))
                };
                let defines = [Self::unified(Class::Predicate, done)];
                let suspends = name == "try_wait";
                let op = Mbarrier::Wait { done, token, parity, suspends, acquires: orders };
                emit(self, op, address, &[use_id], &defines);
            }
            "pending_count" => {
                let to = self.destination(self.operand(0)?, Class::Word)?;
                let state = self.source(self.operand(1)?, Kind { class: Class::Long, bits: 64 })?;
                let op = Mbarrier::PendingCount { to, state };
                let nowhere = Address { base: None, offset: 0 };
                emit(self, op, nowhere, &[Self::unified(Class::Long, state)], &[to]);
            }
            _ => return Err(self.unsupported("this mbarrier operation")),
        }
        Ok(())
    }

    fn wgmma(&mut self, opcode: &str, parts: &[&str]) -> Result<()> {
        let class = InstructionClass::Synchronize;
        match parts.get(1).copied() {
            Some("fence") => self.emit_current(Op::WgmmaFence, class, &[], &[]),
            Some("commit_group") => self.emit_current(Op::WgmmaCommit, class, &[], &[]),
            Some("wait_group") => {
                let Operand::Integer(left) = *self.operand(0)? else {
                    return Err(self.fail("wgmma.wait_group takes a number"));
                };
                self.emit_current(Op::WgmmaWait(left as u32), class, &[], &[]);
            }
            Some("mma_async") => self.wgmma_product(opcode, parts)?,
            _ => return Err(self.unsupported("this wgmma operation")),
        }
        Ok(())
    }

    fn wgmma_product(&mut self, opcode: &str, parts: &[&str]) -> Result<()> {
        let unknown = |loader: &Self| {
            loader.fail(format!(
                "{opcode} is not known: m64nN of bf16, f16, tf32, 8-bit floats and integers, f32, f16 or s32 sums, are"
            ))
        };
        let saturates = parts.contains(&"satfinite");
        let rest: Vec<&str> = parts.iter().copied().filter(|part| *part != "satfinite").collect();
        let [_, _, "sync", "aligned", shape, to, a_kind, b_kind] = rest[..] else {
            return Err(unknown(self));
        };
        let (format, bytes, half_accumulator, depth) = match (to, a_kind, b_kind) {
            ("f32", "bf16", "bf16") => (TensorFormat::Brain, None, false, 16),
            ("f32", "f16", "f16") => (TensorFormat::Half, None, false, 16),
            ("f16", "f16", "f16") => (TensorFormat::Half, None, true, 16),
            ("f32", "tf32", "tf32") => (TensorFormat::Tf32, None, false, 8),
            _ => {
                let (Some(a), Some(b)) = (Narrow::parse(a_kind), Narrow::parse(b_kind)) else {
                    return Err(unknown(self));
                };
                let is_integer = match (a.family(), b.family()) {
                    (0, 0) => true,
                    (2, 2) => false,
                    _ => return Err(unknown(self)),
                };
                if !matches!((is_integer, to), (true, "s32") | (false, "f32" | "f16")) {
                    return Err(unknown(self));
                }
                (TensorFormat::Half, Some([a, b]), to == "f16", 32)
            }
        };
        let integer = (to == "s32").then_some(saturates);
        if saturates && integer.is_none() {
            return Err(unknown(self));
        }
        let columns = shape.strip_prefix("m64n").and_then(|rest| rest.strip_suffix(&format!("k{depth}")));
        let columns: usize = columns.and_then(|digits| digits.parse().ok()).ok_or_else(|| unknown(self))?;
        if columns == 0 || columns > 256 || !columns.is_multiple_of(8) {
            return Err(unknown(self));
        }
        let d = self.fragment(self.operand(0)?, false)?;
        if d.len() != columns / if half_accumulator { 4 } else { 2 } {
            return Err(self.fail("the number of registers of D differs from the shape"));
        }
        let long = Kind { class: Class::Long, bits: 64 };
        let a = match self.operand(1)? {
            Operand::Vector(_) => {
                let registers = self.fragment(self.operand(1)?, true)?;
                let Ok(registers) = <[u32; 4]>::try_from(registers) else {
                    return Err(self.fail("A of four registers was expected"));
                };
                WgmmaLeft::Registers(registers)
            }
            other => WgmmaLeft::Shared(self.source(other, long)?),
        };
        let b = self.source(self.operand(2)?, long)?;
        let accumulates = self.predicate(self.operand(3)?)?;
        let number = |loader: &Self, index: usize| match loader.operand(index) {
            Ok(Operand::Integer(value)) => Ok(*value as i64),
            _ => Err(loader.fail(format!("operand {} of wgmma.mma_async is a number", index + 1))),
        };
        // Integers have no factors, and only elements of sixteen bits may lie turned over.
        let scales = if integer.is_some() { [1, 1] } else { [number(self, 4)?, number(self, 5)?] };
        if scales.iter().any(|scale| scale.abs() != 1) {
            return Err(self.fail("A and B are scaled by 1 or -1"));
        }
        let from_shared = matches!(a, WgmmaLeft::Shared(_));
        let turned_a = depth == 16 && from_shared && number(self, 6)? != 0;
        let turned_b = depth == 16 && number(self, if from_shared { 7 } else { 6 })? != 0;
        // Fragments have rules of their own, which the executor knows: they are not among what is read and written here.
        let mut uses = vec![Self::unified(Class::Long, b), Self::unified(Class::Predicate, accumulates)];
        if let WgmmaLeft::Shared(slot) = a {
            uses.push(Self::unified(Class::Long, slot));
        }
        let op = Wgmma {
            format,
            bytes,
            integer,
            columns,
            half_accumulator,
            d,
            a,
            b,
            accumulates,
            negates: scales[0] * scales[1] < 0,
            turned: [turned_a, turned_b],
        };
        self.emit_current(Op::Wgmma(Box::new(op)), InstructionClass::Tensor, &uses, &[]);
        Ok(())
    }
}
