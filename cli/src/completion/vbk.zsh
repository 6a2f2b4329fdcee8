#compdef vbk
# Completion of vbk's arguments for zsh, made by `vbk generate completion zsh`.

_vbk() {
    local -a given open open_text closed closed_text
    local line value text
    given=("${(@Q)words[1,CURRENT]}")
    given=("${(@)given/#\~\//$HOME/}")
    while IFS= read -r line; do
        value=${line%%$'\t'*}
        text=$value
        [[ $line != *$'\t'?* ]] || text="$value  -- ${line#*$'\t'}"
        if [[ $value == *[@/:=] ]]; then
            open+=("$value")
            open_text+=("$text")
        else
            closed+=("$value")
            closed_text+=("$text")
        fi
    done < <("${given[1]}" __complete $((CURRENT - 1)) -- "${given[@]}" 2>/dev/null)
    (( ${#open} + ${#closed} )) || return 1
    (( ! ${#open} )) || compadd -l -V vbk-open -d open_text -S '' -a open
    (( ! ${#closed} )) || compadd -l -V vbk-closed -d closed_text -a closed
}

if [[ $funcstack[1] == _vbk ]]; then
    _vbk "$@"
else
    compdef _vbk vbk
fi
