"""What single libraries need beyond plain pytrees; each module imports its library, and nothing imports them unasked."""
