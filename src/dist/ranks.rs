//! Ranks in words.

/// `rank 3`, `ranks 0-7`, `ranks 0, 2-3`: some ranks, given in ascending order.
pub fn ranks(which: &[usize]) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for rank in which {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == *rank => *last = *rank,
            _ => runs.push((*rank, *rank)),
        }
    }
    let text = |(first, last): &(usize, usize)| match last - first {
        0 => first.to_string(),
        1 => format!("{first}, {last}"),
        _ => format!("{first}-{last}"),
    };
    let noun = if which.len() == 1 { "rank" } else { "ranks" };
    format!("{noun} {}", runs.iter().map(text).collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_words() {
        assert_eq!(ranks(&[3]), "rank 3");
        assert_eq!(ranks(&[0, 1]), "ranks 0, 1");
        assert_eq!(ranks(&[0, 1, 2, 3, 5, 7, 8, 9]), "ranks 0-3, 5, 7-9");
    }
}
