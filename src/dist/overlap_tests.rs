//! The pipeline on a simulated network: several ranks on one thread, in any order, with messages
//! that arrive at any time. The network watches over the buffers of what is under way.

use super::overlap::{Link, Own, Pass, Stream};
use super::reduce::Cuts;
use super::tree::{self, Fold, Node};
use crate::config::Reduce;
use crate::error::Result;
use proptest::prelude::*;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// SplitMix64 (Steele, Lea and Flood, 2014).
#[derive(Default)]
struct Dice(u64);

impl Dice {
    /// A number below `n`.
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

/// A posted operation.
struct Post {
    id: usize,
    data: *mut f32,
    len: usize,
    /// The bits that must still be there when it is carried out.
    bits: Vec<u32>,
    /// A send that the network copied and called done at once.
    buffered: bool,
}

#[derive(Default)]
struct Network {
    dice: Dice,
    posted: usize,
    done: BTreeSet<usize>,
    /// (from, to, stream): sends and receives in the order in which they were posted.
    streams: BTreeMap<(usize, usize, i32), [VecDeque<Post>; 2]>,
    /// For each rank its sums by the library: (what is added, where to).
    sums: BTreeMap<usize, VecDeque<[Post; 2]>>,
    most_at_once: usize,
}

struct Rank<'n> {
    rank: usize,
    size: usize,
    network: &'n RefCell<Network>,
}

fn bits(data: *const f32, len: usize) -> Vec<u32> {
    // SAFETY: the test's buffers outlive the network's operations on them.
    unsafe { std::slice::from_raw_parts(data, len) }.iter().map(|x| x.to_bits()).collect()
}

fn write(data: *mut f32, bits: &[u32]) {
    for (i, b) in bits.iter().enumerate() {
        // SAFETY: as above, and the receiver has posted room for them.
        unsafe { *data.add(i) = f32::from_bits(*b) };
    }
}

impl Network {
    fn post(&mut self, data: *mut f32, len: usize) -> Post {
        self.posted += 1;
        self.most_at_once = self.most_at_once.max(self.posted - self.done.len());
        Post { id: self.posted, data, len, bits: bits(data, len), buffered: false }
    }

    /// Room for what is to come, filled with what would be noticed.
    fn room(&mut self, data: *mut f32, len: usize) -> Post {
        write(data, &vec![0x7fc0_1234; len]);
        self.post(data, len)
    }

    /// Carries out whatever is posted on both sides, or not, as the dice fall.
    fn carry(&mut self) {
        for [sends, receives] in self.streams.values_mut() {
            while !sends.is_empty() && !receives.is_empty() && self.dice.below(3) > 0 {
                let (send, room) = (sends.pop_front().unwrap(), receives.pop_front().unwrap());
                assert_eq!(send.len, room.len, "a message of another length was expected");
                assert!(send.buffered || bits(send.data, send.len) == send.bits, "changed early");
                assert_eq!(bits(room.data, room.len), room.bits, "touched while expected");
                write(room.data, &send.bits);
                self.done.extend([send.id, room.id]);
            }
        }
        let size = self.sums.len();
        while size > 0 && self.sums.values().all(|q| !q.is_empty()) && self.dice.below(3) > 0 {
            let all: Vec<[Post; 2]> =
                self.sums.values_mut().map(|q| q.pop_front().unwrap()).collect();
            let mut total = vec![0f32; all[0][0].len];
            for [from, _] in &all {
                assert_eq!(bits(from.data, from.len), from.bits, "changed early");
                for (t, b) in total.iter_mut().zip(&from.bits) {
                    *t += f32::from_bits(*b);
                }
            }
            let total: Vec<u32> = total.iter().map(|x| x.to_bits()).collect();
            for [from, to] in &all {
                assert_eq!(bits(to.data, to.len), to.bits, "touched while expected");
                write(to.data, &total);
                self.done.extend([from.id, to.id]);
            }
        }
    }
}

impl Link for Rank<'_> {
    type Requests = Vec<usize>;

    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    unsafe fn send(
        &self,
        data: *const f32,
        len: usize,
        to: usize,
        stream: Stream,
        requests: &mut Vec<usize>,
    ) -> Result<()> {
        let mut network = self.network.borrow_mut();
        let mut post = network.post(data.cast_mut(), len);
        requests.push(post.id);
        post.buffered = network.dice.below(3) == 0;
        if post.buffered {
            network.done.insert(post.id);
        }
        let key = (self.rank, to, stream as i32);
        network.streams.entry(key).or_default()[0].push_back(post);
        Ok(())
    }

    unsafe fn receive(
        &self,
        data: *mut f32,
        len: usize,
        from: usize,
        stream: Stream,
        requests: &mut Vec<usize>,
    ) -> Result<()> {
        let mut network = self.network.borrow_mut();
        let post = network.room(data, len);
        requests.push(post.id);
        let key = (from, self.rank, stream as i32);
        network.streams.entry(key).or_default()[1].push_back(post);
        Ok(())
    }

    unsafe fn sum(
        &self,
        data: *const f32,
        sum: *mut f32,
        len: usize,
        requests: &mut Vec<usize>,
    ) -> Result<()> {
        let mut network = self.network.borrow_mut();
        let from = network.post(data.cast_mut(), len);
        let to = network.room(sum, len);
        requests.extend([from.id, to.id]);
        network.sums.get_mut(&self.rank).unwrap().push_back([from, to]);
        Ok(())
    }

    fn is_live(requests: &Vec<usize>) -> bool {
        !requests.is_empty()
    }

    fn test(&self, requests: &mut Vec<usize>) -> Result<bool> {
        let mut network = self.network.borrow_mut();
        network.carry();
        let done = requests.iter().all(|id| network.done.contains(id));
        if done {
            requests.clear();
        }
        Ok(done)
    }
}

/// One rank's buffers.
struct Memory {
    gradient: Vec<f32>,
    parts: Vec<(Node, Vec<f32>)>,
    inbox: Vec<f32>,
    /// The values that backward of the last micro-batch will leave.
    last: Option<(usize, Vec<f32>)>,
}

fn add(into: &mut [f32], from: &[f32]) {
    into.iter_mut().zip(from).for_each(|(a, b)| *a += *b);
}

fn fold(values: &[Vec<f32>], range: std::ops::Range<usize>) -> Vec<(Node, Vec<f32>)> {
    let mut fold = Fold::default();
    for leaf in range {
        fold.push(
            leaf,
            |into: &mut Vec<f32>| add(into, &values[leaf]),
            || values[leaf].clone(),
            |into, from| add(into, &from),
        );
    }
    fold.take()
}

/// What one rank alone makes of the whole step.
fn expected(values: &[Vec<f32>], how: Reduce) -> Vec<f32> {
    if how == Reduce::Fast {
        let mut sum = values[0].clone();
        values[1..].iter().for_each(|v| add(&mut sum, v));
        return sum;
    }
    let mut parts = fold(values, 0..values.len());
    let views = parts.iter_mut().map(|(n, v)| (*n, v.as_mut_slice())).collect();
    tree::evaluate(views, values.len(), &mut |a, b: &mut [f32]| tree::add_into(a, b))
        .unwrap()
        .to_vec()
}

fn memory(values: &[Vec<f32>], how: Reduce, rank: usize, size: usize) -> Memory {
    let own = tree::owned(rank, size, values.len());
    let total = values[0].len();
    let (mut gradient, mut parts) = (vec![0.0; total], Vec::new());
    let last = own.clone().next_back().map(|leaf| {
        // What is not there yet is something else.
        gradient.fill(-77.0);
        (leaf, values[leaf].clone())
    });
    let last = match (how, last) {
        (Reduce::Fast, Some((leaf, mut value))) => {
            values[own.start..leaf].iter().for_each(|v| add(&mut value, v));
            Some((leaf, value))
        }
        (Reduce::Exact, Some((leaf, value))) => {
            parts = fold(values, own.start..leaf);
            Some((leaf, value))
        }
        (_, None) => None,
    };
    Memory { gradient, parts, inbox: Vec::new(), last }
}

/// Runs a step on all ranks in a random order and gives every rank's result.
fn simulate(values: &[Vec<f32>], how: Reduce, cuts: Cuts, seed: u64) -> (Vec<Vec<f32>>, usize) {
    let (m, total) = (values.len(), cuts.total);
    let network = RefCell::new(Network { dice: Dice(seed), ..Network::default() });
    network.borrow_mut().sums = (0..cuts.size).map(|r| (r, VecDeque::new())).collect();
    let mut dice = Dice(seed ^ 1);
    let mut all: Vec<Memory> = (0..cuts.size).map(|r| memory(values, how, r, cuts.size)).collect();
    let links: Vec<Rank> =
        (0..cuts.size).map(|rank| Rank { rank, size: cuts.size, network: &network }).collect();
    let mut ranks: Vec<_> = all
        .iter_mut()
        .zip(&links)
        .map(|(memory, link)| {
            let gradient = Cell::from_mut(memory.gradient.as_mut_slice()).as_slice_of_cells();
            let parts = memory.parts.iter_mut();
            let parts = parts
                .map(|(n, v)| (*n, Cell::from_mut(v.as_mut_slice()).as_slice_of_cells()))
                .collect();
            let last = memory.last.as_ref().map(|l| l.0);
            let own = Own { gradient, last, parts, keep: Box::new(()) };
            let pass = Pass::new(link, (how, cuts, m), own, &mut memory.inbox).unwrap();
            (pass, gradient, memory.last.take(), 0usize)
        })
        .collect();
    let mut done = vec![false; cuts.size];
    for turn in 0.. {
        assert!(turn < 100_000, "it does not come to an end");
        let rank = dice.below(cuts.size as u64) as usize;
        let (pass, gradient, last, ready) = &mut ranks[rank];
        // Backward writes a bit more, and says so.
        let upto = (*ready + dice.below(40) as usize).min(total);
        if let Some((_, value)) = last {
            (*ready..upto).for_each(|i| gradient[i].set(value[i]));
        }
        *ready = upto;
        pass.ready(upto).unwrap();
        done[rank] = pass.advance().unwrap();
        if done.iter().all(|done| *done) {
            break;
        }
    }
    drop(ranks);
    let most = network.borrow().most_at_once;
    (all.into_iter().map(|memory| memory.gradient).collect(), most)
}

fn values(m: usize, total: usize, seed: u64, whole: bool) -> Vec<Vec<f32>> {
    let mut dice = Dice(seed);
    let mut one = || {
        let x = dice.below(2_000_001) as f32 - 1e6;
        if whole { (x / 1e4).round() } else { x * 1.1e-3 }
    };
    (0..m).map(|_| (0..total).map(|_| one()).collect()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn any_cut_and_any_order_of_events_gives_the_bits_of_one_rank(
        m in 1usize..14, size in 1usize..7, total in 1usize..400, bucket in 1usize..90,
        seed: u64,
    ) {
        let values = values(m, total, seed, false);
        let cuts = Cuts { total, bucket, size };
        let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let wanted = bits(&expected(&values, Reduce::Exact));
        for (rank, sum) in simulate(&values, Reduce::Exact, cuts, seed).0.iter().enumerate() {
            prop_assert_eq!(bits(sum), wanted.clone(), "rank {}", rank);
        }
    }

    #[test]
    fn fast_sums_all(
        m in 1usize..14, size in 1usize..7, total in 1usize..400, bucket in 1usize..90,
        seed: u64,
    ) {
        let values = values(m, total, seed, true);
        let cuts = Cuts { total, bucket, size };
        let wanted = expected(&values, Reduce::Fast);
        for sum in simulate(&values, Reduce::Fast, cuts, seed).0 {
            prop_assert_eq!(&sum, &wanted);
        }
    }
}

#[test]
fn open_requests_are_bounded_by_the_window() {
    let (size, bucket) = (2, 16);
    let most = |total| {
        let values = values(2, total, 3, false);
        simulate(&values, Reduce::Exact, Cuts { total, bucket, size }, 5).1
    };
    // Of each bucket on its way: a receive and a send in stages 1 to 3, the same in 3 to 5.
    let bound = size * super::overlap::WINDOW * 4;
    let found = most(16 * 200);
    assert!(found <= bound, "{found} operations at once");
}
