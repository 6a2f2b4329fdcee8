"""What the race found: medians, spreads and ratios, as tables and as JSON."""

from statistics import mean, median

from .rounds import LINES

MIB = 1 << 20
LIMITS = {
    "read": "reading",
    "zstd": "zstd -3",
    "blake3": "BLAKE3",
    "write": "writing",
    "write extents": "writing the extents",
}


def limit_of(key, limits, facts):
    """The limit of a line, as (name, value): what the slowest part of the work takes at best. None if there is none."""
    medians = {name: median(values) for name, values in limits.figures.items()}
    second_day = facts["second_data_bytes"] / facts["first_data_bytes"]

    def largest(parts):
        times = {LIMITS[name]: medians[name] * factor for name, factor in parts.items() if name in medians}
        return max(times.items(), key=lambda item: item[1]) if times else None

    if key == "first":
        return largest({"read": 1, "zstd": 1, "blake3": 1, "write": 1})
    if key == "warm":
        return largest({"zstd": 1, "blake3": 1, "write": 1})
    if key in ("next", "unchanged"):
        return largest({"read": second_day, "blake3": second_day})
    if key == "verify":
        return largest({"read": facts["stored_bytes"] / facts["first_data_bytes"], "blake3": second_day})
    if key == "restore":
        return largest({"write extents": second_day})
    if key in ("dd", "random1", "random8") and key in medians:
        return "the disk itself", medians[key]
    if key == "size" and limits.zstd_bytes:
        return "zstd -3", limits.zstd_bytes / 1e6
    return None


def summary(race, contenders, facts):
    """The result as what JSON has: a list of lines, each with what every contender did, and the ratios of the first one."""
    lead, lines = contenders[0], []
    for line in LINES:
        entries = {}
        for contender in contenders:
            figures = race.results.get((contender.name, line.key))
            if not figures or not figures.values:
                continue
            entry = {
                "values": figures.values,
                "median": median(figures.values),
                "min": min(figures.values),
                "max": max(figures.values),
            }
            if figures.taken:
                entry["cpu_s"] = median(taken.cpu for taken in figures.taken)
                entry["peak_mib"] = max(taken.peak_mib for taken in figures.taken)
                entry["written_bytes"] = round(mean(taken.written for taken in figures.taken))
            entries[contender.name] = entry
        result = {"key": line.key, "title": line.title, "unit": line.unit, "more_is_better": line.more, "contenders": entries}
        mine = entries.get(lead.name)
        # Other ways of vbk are no peers.
        peers = {
            contender.name: entries[contender.name]["median"]
            for contender in contenders
            if contender.name in entries and contender.is_peer
        }
        if mine and peers:
            best = (max if line.more else min)(peers, key=peers.get)
            result["best_peer"] = best
            result["ratio_to_best_peer"] = _ratio(mine["median"], peers[best])
        limit = limit_of(line.key, race.limits, facts) if mine else None
        if limit:
            result["limit"] = {"name": limit[0], "value": limit[1]}
            result["ratio_to_limit"] = _ratio(mine["median"], limit[1])
        lines.append(result)
    return lines


def _ratio(value, base):
    return value / base if base else None


def figure(value, unit):
    """A figure as people read it: three digits that count."""
    digits = 0 if value >= 100 or unit in ("/s", "MiB") else 1 if value >= 10 else 2
    return f"{value:,.{digits}f}"


def _times(ratio, name):
    return "-" if ratio is None else f"{ratio:.2f} {name}"


def print_table(lines, lead):
    """The lines, each with its contenders below it; the ratios are those of the first contender."""
    print(f"{'':32} {'median':>10} {'spread':>17} {'cpu s':>7} {'peak MiB':>8} {'written MB':>10}  {'x best peer':16} x limit")
    for line in lines:
        print(f"{line['title']}, {line['unit']}")
        for name, entry in line["contenders"].items():
            spread = f"{figure(entry['min'], line['unit'])}-{figure(entry['max'], line['unit'])}"
            cells = [f"  {name:30} {figure(entry['median'], line['unit']):>10} {spread:>17}"]
            if "cpu_s" in entry:
                cells.append(f"{entry['cpu_s']:7.1f} {entry['peak_mib']:8.0f} {entry['written_bytes'] / 1e6:10,.0f} ")
            else:
                cells.append(f"{'-':>7} {'-':>8} {'-':>10} ")
            if name == lead:
                cells.append(f"{_times(line.get('ratio_to_best_peer'), line.get('best_peer')):16}")
                cells.append(_times(line.get("ratio_to_limit"), line.get("limit", {}).get("name")))
            print(" ".join(cells).rstrip())


def print_limits(limits):
    """What the machine can do at best, with the way that was fastest."""
    rate = lambda name: f"{median(limits.figures[name]):.2f} s, {limits.data / median(limits.figures[name]) / 1e6:,.0f} MB/s"
    print(f"limits, for the {limits.data / 1e6:,.0f} MB of the first day's extents:")
    step, depth = limits.ways["read"]
    print(f"  reading with O_DIRECT, {depth} x {step // MIB} MiB at a time    {rate('read')}")
    print(f"  zstd -T0 -3 from the page cache               {rate('zstd')}; {limits.zstd_bytes / 1e6:,.0f} MB")
    if "blake3" in limits.figures:
        print(f"  BLAKE3 on all processors, from the page cache {rate('blake3')}")
    way = "with O_DIRECT" if limits.ways["write"][0] else "through the page cache"
    print(f"  writing as much as vbk stores, {way:22} {median(limits.figures['write']):.2f} s")
    way = "with O_DIRECT" if limits.ways["write extents"][0] else "through the page cache"
    print(f"  writing the extents, {way:22}  {rate('write extents')}")


def print_comparison(lines, base, present):
    """Each line's ratio between two programs."""
    print(f"\n{'':32} {base:>14} {present:>14} {'ratio':>7}")
    for line in lines:
        entries = line["contenders"]
        if base in entries and present in entries:
            before, after = entries[base]["median"], entries[present]["median"]
            better = "" if not before else f"{after / before:7.3f}{'  (more is better)' if line['more_is_better'] else ''}"
            title = f"{line['title']}, {line['unit']}"
            print(f"{title:32} {figure(before, line['unit']):>14} {figure(after, line['unit']):>14} {better}")


def comparison(lines, base, present):
    """The ratios of print_comparison, by the key of the line."""
    entries = {line["key"]: line["contenders"] for line in lines}
    return {
        key: _ratio(entry[present]["median"], entry[base]["median"])
        for key, entry in entries.items()
        if base in entry and present in entry
    }
