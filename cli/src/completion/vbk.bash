# Completion of vbk's arguments for bash, made by `vbk generate completion bash`.

_vbk() {
    local line=${COMP_LINE:0:COMP_POINT} word gap index rest value
    local -a words=() values=()
    COMPREPLY=()

    # Bash also splits words at @, : and =, which are part of the names of backups.
    for ((index = 0; index <= COMP_CWORD; index++)); do
        gap=${line%%[![:space:]]*}
        line=${line#"$gap"}
        if ((index < COMP_CWORD)); then word=${COMP_WORDS[index]}; else word=$line; fi
        line=${line#"$word"}
        if ((index == 0)) || [[ -n $gap ]]; then words+=("$word"); else words[-1]+=$word; fi
    done
    local current=${words[-1]}

    for index in "${!words[@]}"; do
        word=${words[index]}
        if [[ $word =~ ^\"?\$\{?([A-Za-z_][A-Za-z0-9_]*)\}?\"?$ ]]; then
            word=${!BASH_REMATCH[1]-}
        else
            word=${word//[\"\'\\]/}
            [[ ! $word =~ ^(--[a-z-]+=)?~/(.*)$ ]] || word=${BASH_REMATCH[1]}$HOME/${BASH_REMATCH[2]}
        fi
        words[index]=$word
    done

    # Readline replaces only what follows the last character at which it splits.
    rest=${current%"$2"}
    while IFS= read -r value; do
        value=${value%%$'\t'*}
        [[ $value == *[@/:=] ]] || value+=" "
        values+=("$value")
    done < <("${words[0]}" __complete $((${#words[@]} - 1)) -- "${words[@]}" 2>/dev/null)
    for value in "${values[@]}"; do
        word=${value% }
        [[ $word != *[[:space:]\'\"\\\$\&\;\(\)\|\<\>\*\?]* ]] || printf -v word %q "$word"
        word=${word#"$rest"}
        [[ $value != *" " ]] || word+=" "
        COMPREPLY+=("$word")
    done
}

complete -o nosort -o nospace -F _vbk vbk
